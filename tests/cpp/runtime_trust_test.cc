// SPDX-License-Identifier: Apache-2.0
// Kernel cache: images that another user could have put on disk are never loaded.
//
// Usage: runtime_trust_test directories DIR | entries DIR | created DIR | foreign DIR (as root)
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "checks.h"
#include "jit/kernel_cache.h"

namespace fp8gemm {
namespace {

namespace fs = std::filesystem;

constexpr uid_t kStranger = 12345;

mode_t ModeOf(const std::string& path) {
  struct stat info = {};
  CHECK(lstat(path.c_str(), &info) == 0);
  return info.st_mode & 07777;
}

void SetMode(const std::string& path, mode_t mode) { CHECK(chmod(path.c_str(), mode) == 0); }

/// A directory with a whole entry of "key", which only its owner can change.
std::string Forge(const std::string& directory) {
  CHECK(DiskStore(directory).Store("key", "tile", "forged").empty());
  return DiskStore(directory).PathOf("key", "tile");
}

struct Used {
  std::string image;  // of "key"
  KernelCache::Counters counters;
  std::vector<std::string> warnings;
};

/// What a new process gets that wants two kernels.
Used Use(const std::string& directory) {
  Used used;
  KernelCache cache;
  cache.SetWarningSink([&](std::string text) { used.warnings.push_back(std::move(text)); });
  cache.SetDirectory(directory);
  used.image = *cache.GetOrBuild("key", "tile", [] { return std::string("built"); });
  cache.GetOrBuild("other", "tile", [] { return std::string("other"); });
  used.counters = cache.GetCounters();
  return used;
}

/// Expects that nothing is read from a directory or written to it, and that this is said once.
void CheckRefused(const std::string& directory, const std::vector<const char*>& words) {
  const Used used = Use(directory);
  CHECK(used.image == "built" && used.counters.disk_hits == 0);
  CHECK(used.warnings.size() == 1);
  CHECK_CONTAINS(used.warnings[0], DiskStore(directory).directory().c_str());
  CHECK_CONTAINS(used.warnings[0], "JAX_FP8GEMM_CACHE_DIR");
  for (const char* word : words) CHECK_CONTAINS(used.warnings[0], word);
  const DiskStore store(directory);
  CHECK(store.List().empty() && store.Clear() == 0);
  CHECK_CONTAINS(used.warnings[0], store.Refusal().c_str());
  CHECK(std::distance(fs::directory_iterator(directory), {}) == 1);  // still, and nothing else
}

void CheckAccepted(const std::string& directory) {
  const Used used = Use(directory);
  CHECK(used.image == "forged" && used.counters.disk_hits >= 1 && used.warnings.empty());
  CHECK(DiskStore(directory).Refusal().empty());
}

void TestDirectories(const std::string& root) {
  const std::string directory = root + "/cache";
  Forge(directory);
  const std::string mend = "chmod go-w " + directory;
  for (const mode_t mode : {0777, 0775, 0770, 0702, 0720}) {
    SetMode(directory, mode);
    CheckRefused(directory, {"other users", mend.c_str()});
  }
  SetMode(directory, 01777);  // where chmod go-w would be bad advice
  CheckRefused(directory, {"other users"});
  CHECK(DiskStore(directory).Refusal().find("chmod") == std::string::npos);

  SetMode(directory, 0700);
  fs::create_directory_symlink(directory, root + "/link");
  CheckRefused(root + "/link", {"is a link"});
  CheckRefused(root + "/link/", {"is a link"});

  // A parent that everyone can write to, by name or behind a link; a sticky one only looks so.
  fs::create_directory(root + "/open");
  fs::create_directory_symlink(root, root + "/open/way");
  fs::create_directory(root + "/shut");
  fs::create_directory_symlink(root + "/open", root + "/shut/way");
  fs::create_directory_symlink(root + "/open/shut", root + "/shut/long_way");
  Forge(root + "/open/cache");
  Forge(root + "/open/shut/cache");
  SetMode(root + "/open", 0777);
  for (const char* path :
       {"/open/cache", "/open/way/cache", "/shut/way/cache", "/shut/long_way/cache"}) {
    CheckRefused(root + path, {"can be replaced", "chmod o-w"});
  }
  SetMode(root + "/open", 01777);
  CheckAccepted(root + "/open/cache");
  SetMode(root + "/open", 0775);
  CheckAccepted(root + "/open/cache");

  SetMode(directory, 0755);
  CheckAccepted(directory);
}

/// Expects that the entry of "key" is built, and that a process after that has a good one.
void CheckReplaced(const std::string& directory) {
  const Used used = Use(directory);
  CHECK(used.image == "built" && used.counters.corrupt == 1 && used.warnings.empty());
  const Used after = Use(directory);
  CHECK(after.image == "built" && after.counters.disk_hits == 2);
  CHECK(ModeOf(DiskStore(directory).PathOf("key", "tile")) == 0644);
}

void TestEntries(const std::string& root) {
  for (const mode_t mode : {0666, 0664, 0646}) {
    SetMode(Forge(root), mode);
    CheckReplaced(root);
  }
  const std::string path = Forge(root);
  fs::rename(path, root + "/elsewhere");
  fs::create_symlink(root + "/elsewhere", path);
  CheckReplaced(root);
  CHECK(fs::is_regular_file(root + "/elsewhere"));  // what a link leads to is not touched
}

void TestCreated(const std::string& root) {
  umask(0002);
  CHECK(fs::create_directory(root + "/home"));
  const std::string directory = root + "/home/.cache/deep/jax_fp8gemm";
  CHECK(ModeOf(root + "/home") == 0775);
  const std::string path = Forge(directory);
  for (fs::path at = directory; at != root + "/home"; at = at.parent_path()) {
    CHECK(ModeOf(at) == 0700);
  }
  CHECK(ModeOf(path) == 0644);
  CheckAccepted(directory);
}

void TestForeign(const std::string& root) {
  const std::string directory = root + "/cache";
  const std::string path = Forge(directory);
  CHECK(chown(path.c_str(), kStranger, 0) == 0);
  CheckReplaced(directory);
  fs::remove_all(directory);
  Forge(directory);
  CHECK(chown(directory.c_str(), kStranger, 0) == 0);
  CheckRefused(directory, {"belongs to user 12345", "this is user 0"});

  // What belongs to root is good for every user, but only to read.
  CHECK(chown(directory.c_str(), 0, 0) == 0);
  SetMode(directory, 0755);
  SetMode(root, 0755);
  CHECK(seteuid(kStranger) == 0);
  const Used used = Use(directory);
  CHECK(used.image == "forged" && used.counters.disk_hits == 1 && used.warnings.size() == 1);
  CHECK_CONTAINS(used.warnings[0], "Permission denied");
}

}  // namespace
}  // namespace fp8gemm

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const std::string directory = argc > 2 ? argv[2] : "";
  umask(0022);
  if (mode == "directories") {
    fp8gemm::TestDirectories(directory);
  } else if (mode == "entries") {
    fp8gemm::TestEntries(directory);
  } else if (mode == "created") {
    fp8gemm::TestCreated(directory);
  } else if (mode == "foreign") {
    fp8gemm::TestForeign(directory);
  } else {
    checks::Fail("usage", 0, "unknown mode '" + mode + "'");
  }
}
