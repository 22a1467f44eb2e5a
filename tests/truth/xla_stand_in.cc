// SPDX-License-Identifier: Apache-2.0
// Calls an FFI handler as XLA does, by the C interface in jaxlib's headers: for Python.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "xla/ffi/api/c_api.h"

struct XLA_FFI_Error {
  std::string message;
};
// Of one call. The state is that of the call site, which instantiation makes.
struct XLA_FFI_ExecutionContext {
  void* state;
  void* stream;
};

namespace {

struct Buffer {
  int32_t type;  // XLA_FFI_DataType
  int64_t rank;
  const int64_t* dims;
  void* data;
};
struct Attribute {
  const char* name;
  const char* text;
  int64_t number;  // bytes of the text; or the value, of any type
  int32_t kind;    // XLA_FFI_AttrType
  int32_t type;    // XLA_FFI_DataType of a scalar, or of an array of one
};

XLA_FFI_Error* CreateError(XLA_FFI_Error_Create_Args* args) {
  return new XLA_FFI_Error{args->message};
}
void GetMessage(XLA_FFI_Error_GetMessage_Args* args) {
  args->message = args->error->message.c_str();
}
void DestroyError(XLA_FFI_Error_Destroy_Args* args) { delete args->error; }
XLA_FFI_Error* GetStream(XLA_FFI_Stream_Get_Args* args) {
  return args->stream = args->ctx->stream, nullptr;
}
// The state is the last field of the arguments in every version of the interface: the first have no
// stage there. A handler may be built against an older one than this file.
template <typename Args>
void*& StateOf(Args* args) {
  char* const end = reinterpret_cast<char*>(args) + args->struct_size;
  return *reinterpret_cast<void**>(end - sizeof(void*));
}
XLA_FFI_Error* SetState(XLA_FFI_State_Set_Args* args) {
  return args->ctx->state = StateOf(args), nullptr;
}
XLA_FFI_Error* GetState(XLA_FFI_State_Get_Args* args) {
  return StateOf(args) = args->ctx->state, nullptr;
}

XLA_FFI_Api MakeApi() {
  XLA_FFI_Api api{};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR,
                     XLA_FFI_API_MINOR};
  api.XLA_FFI_Error_Create = CreateError;
  api.XLA_FFI_Error_GetMessage = GetMessage;
  api.XLA_FFI_Error_Destroy = DestroyError;
  api.XLA_FFI_Stream_Get = GetStream;
  api.XLA_FFI_State_Set = SetState;
  api.XLA_FFI_State_Get = GetState;
  return api;
}

std::vector<XLA_FFI_Buffer> Buffers(const Buffer* buffers, int64_t count) {
  std::vector<XLA_FFI_Buffer> result;
  for (int64_t i = 0; i < count; ++i) {
    result.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr,
                      static_cast<XLA_FFI_DataType>(buffers[i].type), buffers[i].data,
                      buffers[i].rank, const_cast<int64_t*>(buffers[i].dims)});
  }
  return result;
}

template <typename T>
std::vector<void*> Pointers(std::vector<T>& values) {
  std::vector<void*> result;
  for (T& value : values) result.push_back(&value);
  return result;
}

// Attributes as a call frame has them, sorted by name, which the caller has done.
struct Attributes {
  explicit Attributes(const Attribute* given, int64_t count)
      : spans(2 * count), scalars(count), arrays(count) {
    for (int64_t i = 0; i < count; ++i) {
      const Attribute& attribute = given[i];
      const auto type = static_cast<XLA_FFI_DataType>(attribute.type);
      auto* const number = const_cast<int64_t*>(&attribute.number);
      spans[2 * i] = {attribute.name, std::strlen(attribute.name)};
      spans[2 * i + 1] = {attribute.text, static_cast<size_t>(attribute.number)};
      scalars[i] = {type, number};
      arrays[i] = {type, 1, number};
      types.push_back(static_cast<XLA_FFI_AttrType>(attribute.kind));
      names.push_back(&spans[2 * i]);
      switch (types.back()) {
        case XLA_FFI_AttrType_STRING: values.push_back(&spans[2 * i + 1]); break;
        case XLA_FFI_AttrType_SCALAR: values.push_back(&scalars[i]); break;
        case XLA_FFI_AttrType_ARRAY: values.push_back(&arrays[i]); break;
        case XLA_FFI_AttrType_DICTIONARY: values.push_back(&empty); break;
      }
    }
  }
  std::vector<XLA_FFI_ByteSpan> spans;
  std::vector<XLA_FFI_Scalar> scalars;
  std::vector<XLA_FFI_Array> arrays;
  XLA_FFI_Attrs empty = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr, 0, nullptr, nullptr, nullptr};
  std::vector<XLA_FFI_AttrType> types;
  std::vector<XLA_FFI_ByteSpan*> names;
  std::vector<void*> values;
};

}  // namespace

/// Returns the message of an error, or nullptr.
extern "C" const char* CallHandler(XLA_FFI_Handler* handler, XLA_FFI_ExecutionStage stage,
                                   XLA_FFI_ExecutionContext* context, const Buffer* arguments,
                                   int64_t num_arguments, const Buffer* results,
                                   int64_t num_results, const Attribute* attributes,
                                   int64_t num_attributes) {
  static const XLA_FFI_Api api = MakeApi();
  std::vector<XLA_FFI_Buffer> args = Buffers(arguments, num_arguments);
  std::vector<XLA_FFI_Buffer> rets = Buffers(results, num_results);
  std::vector<void*> arg_pointers = Pointers(args), ret_pointers = Pointers(rets);
  std::vector<XLA_FFI_ArgType> arg_types(args.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> ret_types(rets.size(), XLA_FFI_RetType_BUFFER);
  Attributes attrs(attributes, num_attributes);
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &api;
  frame.ctx = context;
  frame.stage = stage;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, num_arguments, arg_types.data(),
                arg_pointers.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, num_results, ret_types.data(),
                ret_pointers.data()};
  frame.attrs = {
      XLA_FFI_Attrs_STRUCT_SIZE, nullptr, num_attributes, attrs.types.data(), attrs.names.data(),
      attrs.values.data()};
  XLA_FFI_Error* const error = handler(&frame);
  if (error == nullptr) return nullptr;
  static thread_local std::string message;
  message = error->message;
  delete error;
  return message.c_str();
}
