// JSON (RFC 8259), as much as the files of a package need.
#ifndef BITNET_EXAMPLE_JSON_H_
#define BITNET_EXAMPLE_JSON_H_

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;
  std::variant<std::nullptr_t, bool, double, std::string, Array, Object> value = nullptr;

  // Throws Error that begins with the file's name.
  static Json Read(const std::filesystem::path& path);
  static Json Parse(std::string_view text, const std::string& name);

  // A member; null where this is no object or has no such member. Of several the last counts.
  const Json& operator[](std::string_view key) const;
  // The elements; none where this is no array.
  const Array& Items() const;
  const Object& Members() const;
  const std::string* String() const { return std::get_if<std::string>(&value); }
  std::string StringOr(std::string_view otherwise) const;
  bool BoolOr(bool otherwise) const;
  // Whole numbers only.
  int64_t IntOr(int64_t otherwise) const;
  bool IsNull() const { return std::holds_alternative<std::nullptr_t>(value); }
};

#endif  // BITNET_EXAMPLE_JSON_H_
