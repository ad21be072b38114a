// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-support/MappedFile.h"

#include "TestSupport.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sys/stat.h>

using namespace sluice::support;
using namespace sluice::support::test;

namespace {

struct MappedFiles : testing::Test {
  MappedFiles() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "sluice-mapped-XXXXXX").string();
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    folder = pattern;
  }
  ~MappedFiles() override { std::filesystem::remove_all(folder); }

  std::string write(const std::string &name, const std::string &bytes) {
    std::ofstream(folder + "/" + name, std::ios::binary) << bytes;
    return folder + "/" + name;
  }
  static std::string open(const std::string &path, uint64_t limit = UINT64_MAX) {
    return errorOf([&] { MappedFile file(path, limit); });
  }

  std::string folder;
};

} // namespace

TEST_F(MappedFiles, HoldTheBytes) {
  std::string bytes("a\0b\xFF", 4), path = write("file", bytes);
  MappedFile file(path, 4);
  EXPECT_EQ(file.path(), path);
  EXPECT_EQ(file.size(), 4u);
  EXPECT_EQ(file.text(), bytes);
  EXPECT_EQ(std::to_integer<int>(file.bytes()[3]), 0xFF);
  // The mapping outlives the name.
  std::filesystem::remove(path);
  EXPECT_EQ(file.text(), bytes);
  EXPECT_TRUE(MappedFile(write("empty", "")).text().empty());
}

TEST_F(MappedFiles, RefuseWhatIsNoRegularFile) {
  EXPECT_EQ(open(folder + "/none"), folder + "/none: cannot be opened: No such file or directory");
  EXPECT_EQ(open(folder), folder + ": is a directory, expected a file");
  EXPECT_EQ(open("/dev/zero"), "/dev/zero: is not a regular file");
  // A pipe without a writer would wait for one.
  std::string pipe = folder + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(open(pipe), pipe + ": is not a regular file");
  EXPECT_EQ(open(std::string("a\0b", 3)), "'a\\x00b': is not a path: it holds a NUL character");
}

TEST_F(MappedFiles, RefuseMoreThanTheLimit) {
  std::string path = write("file", "12345");
  EXPECT_EQ(open(path, 5), "no error");
  EXPECT_EQ(open(path, 4), path + ": has 5 bytes, expected at most 4");
}

TEST_F(MappedFiles, RefuseGitLfsPointers) {
  std::string path = write("model.gguf", "version https://git-lfs.github.com/spec/v1\n"
                                         "oid sha256:4d7a214614ab2935c943f9e0ff69d22e\n"
                                         "size 16060617592\n");
  EXPECT_EQ(open(path), path + ": is a git-lfs pointer, expected the file that `git lfs pull` puts "
                               "in its place");
  EXPECT_EQ(open(write("text", "version https://git-lfs")), "no error");
}
