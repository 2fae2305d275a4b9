#include <gtest/gtest.h>
#include <sys/stat.h>

#include <type_traits>

#include "builders.h"
#include "lamina/core/safetensors.h"

namespace lamina {
namespace {

using test::message_of;
using test::safetensors_file;
using test::TempFolder;

static_assert(!std::is_copy_constructible_v<TensorStore> &&
              !std::is_copy_assignable_v<TensorStore>);
static_assert(std::is_nothrow_move_constructible_v<TensorStore>);

std::string one_tensor(std::string_view name, std::string_view data) {
  return safetensors_file(
      fmt::format(R"({{"{}":{{"dtype":"U8","shape":[{}],"data_offsets":[0,{}]}}}})", name,
                  data.size(), data.size()),
      data);
}

constexpr const char* kIndex = "model.safetensors.index.json";

struct Shards {
  TempFolder folder;
  std::string index = (folder.path() / kIndex).string();
  Shards() {
    folder.write("a.safetensors", one_tensor("first", "abc"));
    folder.write("b.safetensors", one_tensor("second", "defg"));
  }
  std::string refusal(std::string_view index_text) {
    folder.write(kIndex, index_text);
    return message_of([&] { open_safetensors(folder.path()); });
  }
};

TEST(SafetensorsFolder, ShardsBecomeOneStore) {
  Shards shards;
  shards.folder.write(kIndex, R"({"metadata":{"total_size":7,"x":[1e400]},"weight_map":{}})");
  EXPECT_EQ(message_of([&] { open_safetensors(shards.folder.path()); }),
            shards.index + ": the JSON text holds a number that no 64-bit type can hold");
  shards.folder.write(kIndex, R"({"metadata":{"total_size":7},
      "weight_map":{"second":"b.safetensors","first":"a.safetensors"}})");
  TensorStore opened = open_safetensors(shards.folder.path());
  const TensorInfo* before = opened.find("second");
  const TensorStore store = std::move(opened);
  EXPECT_EQ(store.find("second"), before);
  EXPECT_EQ(store.name(), shards.folder.path().string());
  ASSERT_EQ(store.files().size(), 2u);
  EXPECT_EQ(store.files()[1]->path().filename(), "b.safetensors");
  ASSERT_EQ(store.tensors().size(), 2u);
  EXPECT_EQ(std::memcmp(store.find("first")->bytes.data(), "abc", 3), 0);
  EXPECT_EQ(std::memcmp(store.find("second")->bytes.data(), "defg", 4), 0);
}

TEST(SafetensorsFolder, SingleFileGoesFirst) {
  Shards shards;
  shards.folder.write(kIndex, "broken");
  shards.folder.write("model.safetensors", one_tensor("whole", "xyz"));
  EXPECT_NE(open_safetensors(shards.folder.path()).find("whole"), nullptr);
}

TEST(SafetensorsFolder, IndexAndShardsMustAgree) {
  Shards s;
  EXPECT_EQ(s.refusal(R"({"weight_map":{"first":"a.safetensors","second":"c.safetensors"}})"),
            s.index + ": shard \"c.safetensors\" is missing in the folder; 1 tensors map to it");
  EXPECT_EQ(s.refusal(R"({"weight_map":{"first":"a.safetensors","more":"a.safetensors"}})"),
            s.index +
                ": tensor \"more\" is not in shard \"a.safetensors\", which holds 1 of the 2 "
                "tensors placed there");
  EXPECT_EQ(s.refusal(R"({"weight_map":{"other":"a.safetensors"}})"),
            s.index +
                ": shard \"a.safetensors\" holds tensor \"first\", which the index does not "
                "name");
  EXPECT_EQ(s.refusal(R"({"weight_map":{"first":"b.safetensors","second":"a.safetensors"}})"),
            s.index +
                ": shard \"a.safetensors\" holds tensor \"first\", which the index places in "
                "\"b.safetensors\"");
  s.folder.write("b.safetensors", one_tensor("first", "defg"));
  EXPECT_EQ(s.refusal(R"({"weight_map":{"first":"a.safetensors","second":"b.safetensors"}})"),
            s.index +
                ": shard \"b.safetensors\" holds tensor \"first\", which the index places in "
                "\"a.safetensors\"");
  s.folder.write("b.safetensors", "");
  EXPECT_EQ(s.refusal(R"({"weight_map":{"first":"a.safetensors","second":"b.safetensors"}})"),
            (s.folder.path() / "b.safetensors").string() + ": the file is empty");
}

TEST(SafetensorsFolder, IndexIsReadStrictly) {
  Shards s;
  for (const char* name : {"../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "",
                           "a\\\\b", "a\\u0000b"}) {
    const std::string message =
        s.refusal(fmt::format(R"({{"weight_map":{{"first":"{}"}}}})", name));
    EXPECT_TRUE(message.starts_with(s.index + ": tensor \"first\" maps to \"") &&
                message.ends_with(": expected a plain file name in the index's own folder"))
        << message;
  }
  EXPECT_EQ(s.refusal(R"({"weight_map":{"first":3}})"),
            s.index + ": tensor \"first\" maps to number, expected a file name");
  EXPECT_EQ(s.refusal(R"({"weight_map":{"first":"a.safetensors","first":"a.safetensors"}})"),
            s.index + ": key \"first\" appears twice in one object");
  EXPECT_EQ(s.refusal(R"({"weight_map":{},"weight_map":{}})"),
            s.index + ": key \"weight_map\" appears twice in one object");
  EXPECT_EQ(s.refusal(R"({"weight_map":{}})"),
            s.index + ": \"weight_map\" names 0 tensors, expected at least 1");
  EXPECT_EQ(s.refusal(R"({"weight_map":[]})"), s.index + ": no object \"weight_map\" in the index");
  EXPECT_EQ(s.refusal("[1]"), s.index + ": no object \"weight_map\" in the index");
  EXPECT_EQ(s.refusal("{"), s.index + ": no valid JSON at byte 2");
  EXPECT_EQ(s.refusal("{\"\xff\":1}"), s.index + ": no valid JSON at byte 3");
  EXPECT_EQ(s.refusal(std::string_view("{}\0x", 4)),
            s.index + ": zero byte at byte 2 of 4 in the JSON text");
  EXPECT_EQ(s.refusal(std::string(100000, '[')), s.index + ": JSON nested deeper than 32 levels");
  EXPECT_EQ(s.refusal(""), s.index + ": the file is empty");
}

// Objects at the same depth, one after the other and one inside the other, have keys of their own.
TEST(SafetensorsFolder, EqualKeysInDifferentObjectsAreFine) {
  Shards s;
  s.folder.write(kIndex, R"({"metadata":{"first":{"first":1},"b":[{"first":1},{"first":2}]},)"
                         R"("weight_map":{"first":"a.safetensors"}})");
  EXPECT_EQ(open_safetensors(s.folder.path()).tensors().size(), 1u);
}

TEST(SafetensorsFolder, WhatIsNoModelIsRefused) {
  const TempFolder folder;
  const std::string base = folder.path().string();
  EXPECT_EQ(message_of([&] { open_safetensors(folder.path()); }),
            base + ": the folder holds neither model.safetensors nor model.safetensors.index.json");
  EXPECT_EQ(message_of([&] { open_safetensors(base + "/none"); }),
            base + "/none: cannot open: No such file or directory");
  folder.write("empty", "");
  EXPECT_EQ(message_of([&] { open_safetensors(base + "/empty"); }),
            base + "/empty: the file is empty");
  ASSERT_EQ(::mkfifo((base + "/pipe").c_str(), 0600), 0);
  EXPECT_EQ(message_of([&] { open_safetensors(base + "/pipe"); }),
            base + "/pipe: not a regular file");
}

TEST(MappedFile, NoticesThatTheFileWasCut) {
  const TempFolder folder;
  const auto path = folder.write("f", "0123456789");
  const MappedFile file(path);
  EXPECT_EQ(file.bytes().size(), 10u);
  file.require_unchanged_size();
  std::filesystem::resize_file(path, 4);
  EXPECT_EQ(message_of([&] { file.require_unchanged_size(); }),
            path.string() + ": the file changed while it was open: 10 bytes when opened, 4 now");
}

TEST(TensorStore, NamesAreUnique) {
  std::vector<TensorInfo> tensors(2);
  tensors[0].name = tensors[1].name = "w";
  EXPECT_EQ(message_of([&] { TensorStore("m", std::move(tensors), {}); }),
            "m: tensor \"w\" appears twice (number 0 and 1)");
}

}  // namespace
}  // namespace lamina
