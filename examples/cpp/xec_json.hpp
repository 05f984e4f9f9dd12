// Just enough JSON to read what `python -m xec_jax.export` writes about a model.
//
// Written here so that an analyzer needs no other library for it than onnxruntime.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "xec_error.hpp"

namespace xec {

/// A JSON value that was read; wrong kinds and missing keys are errors that name them.
class Json {
public:
    enum class Kind { null, boolean, number, text, list, object };

    /// Reads a document. `source` says in errors where the text comes from.
    static Json parse(std::string_view text, const std::string& source);

    Kind kind() const { return kind_; }

    /// The members of an object or list in their order; keys only where it is an object.
    const std::vector<Json>& items() const { return items_; }
    const std::vector<std::string>& keys() const { return keys_; }

    /// Returns the member of an object, or null if there is none.
    const Json* find(std::string_view key) const {
        for (std::size_t i = 0; i < keys_.size(); ++i)
            if (keys_[i] == key) return &items_[i];
        return nullptr;
    }

    const Json& at(std::string_view key) const {
        if (const Json* found = find(key)) return *found;
        throw Error("the key '" + std::string(key) + "' is missing");
    }

    const std::vector<Json>& list() const { return of(Kind::list, "a list").items_; }
    const std::string& text() const { return of(Kind::text, "a text").text_; }
    bool truth() const { return of(Kind::boolean, "true or false").text_ == "true"; }

    std::int64_t integer() const {
        const std::string& word = of(Kind::number, "a whole number").text_;
        std::int64_t value = 0;
        const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
        if (error != std::errc() || end != word.data() + word.size())
            throw Error("the value " + word + " should be a whole number");
        return value;
    }

    /// Equal values; numbers are compared as they are written, objects without their order.
    bool operator==(const Json& other) const {
        if (kind_ != other.kind_ || text_ != other.text_ || items_.size() != other.items_.size())
            return false;
        if (kind_ != Kind::object) return items_ == other.items_;
        for (std::size_t i = 0; i < keys_.size(); ++i) {
            const Json* found = other.find(keys_[i]);
            if (!found || !(*found == items_[i])) return false;
        }
        return true;
    }

private:
    friend class JsonReader;

    const Json& of(Kind kind, const char* name) const {
        if (kind_ == kind) return *this;
        throw Error("a value that should be " + std::string(name) + " is something else");
    }

    Kind kind_ = Kind::null;
    std::string text_;  // of a text; of a number or boolean as it is written
    std::vector<std::string> keys_;
    std::vector<Json> items_;
};

/// Returns a text as JSON writes it, with its quotes.
inline std::string quoted(std::string_view text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') result += '\\';
        if (static_cast<unsigned char>(c) < 0x20)
            result += std::string("\\u00") + (c < 0x10 ? '0' : '1') + "0123456789abcdef"[c & 15];
        else
            result += c;
    }
    return result + '"';
}

/// Reads a document from left to right.
class JsonReader {
public:
    JsonReader(std::string_view text, const std::string& source) : text_(text), source_(source) {}

    Json document() {
        Json value = read(0);
        skip_space();
        if (at_ < text_.size()) fail("text after the end");
        return value;
    }

private:
    static constexpr int deepest = 64;  // ours have 4 levels; a broken file must not end the stack

    Json read(int depth) {
        if (depth > deepest) fail("too many levels");
        skip_space();
        Json value;
        const char c = peek();
        if (c == '{' || c == '[') {
            read_members(value, depth);
        } else if (c == '"') {
            value.kind_ = Json::Kind::text;
            value.text_ = read_text();
        } else {
            read_word(value);
        }
        return value;
    }

    void read_members(Json& value, int depth) {
        const bool is_object = next() == '{';
        value.kind_ = is_object ? Json::Kind::object : Json::Kind::list;
        const char close = is_object ? '}' : ']';
        skip_space();
        if (peek() == close) {
            ++at_;
            return;
        }
        for (char c = ','; c != close; c = next()) {
            if (c != ',') fail("',' or the end of a list is missing");
            if (is_object) {
                skip_space();
                value.keys_.push_back(read_text());
                skip_space();
                if (next() != ':') fail("':' is missing");
            }
            value.items_.push_back(read(depth + 1));
            skip_space();
        }
    }

    /// Numbers, true, false and null; NaN and Infinity as Python writes them.
    void read_word(Json& value) {
        const std::size_t begin = at_;
        while (at_ < text_.size() && is_word(text_[at_])) ++at_;
        value.text_ = text_.substr(begin, at_ - begin);
        const std::string& word = value.text_;
        if (word == "null") return;
        if (word == "true" || word == "false") {
            value.kind_ = Json::Kind::boolean;
            return;
        }
        value.kind_ = Json::Kind::number;
        const bool has_digit = word.find_first_of("0123456789") < 2;  // perhaps after a sign
        if (!has_digit && word != "NaN" && word != "Infinity" && word != "-Infinity")
            fail("'" + word + "' is no value");
    }

    std::string read_text() {
        if (next() != '"') fail("a text is missing");
        std::string result;
        for (char c = next(); c != '"'; c = next()) {
            if (c != '\\') {
                result += c;
                continue;
            }
            c = next();
            const std::string_view names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
            const std::size_t which = names.find(c);
            if (c == 'u')
                append_utf8(result, read_code_point());
            else if (which == names.npos)
                fail("an unknown escape");
            else
                result += values[which];
        }
        return result;
    }

    std::uint32_t read_code_point() {
        const std::uint32_t first = read_hex();
        if (first < 0xd800 || first > 0xdfff) return first;
        if (first > 0xdbff || text_.substr(at_, 2) != "\\u") return 0xfffd;  // half a pair
        at_ += 2;
        const std::uint32_t second = read_hex();
        if (second < 0xdc00 || second > 0xdfff) return 0xfffd;
        return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    }

    std::uint32_t read_hex() {
        std::uint32_t value = 0;
        for (int i = 0; i < 4; ++i) {
            const char c = next();
            const std::string_view digits = "0123456789abcdef0123456789ABCDEF";
            const std::size_t digit = digits.find(c);
            if (digit == digits.npos) fail("four hexadecimal digits are missing");
            value = value << 4 | (static_cast<std::uint32_t>(digit) & 15);
        }
        return value;
    }

    static void append_utf8(std::string& text, std::uint32_t c) {
        const int more = c < 0x80      ? 0
                         : c < 0x800   ? 1
                         : c < 0x10000 ? 2
                                       : 3;  // bytes after the first
        const std::uint32_t mark = more ? 0xff00 >> (more + 1) & 0xff : 0;
        text += static_cast<char>(mark | c >> (6 * more));
        for (int i = more - 1; i >= 0; --i) text += static_cast<char>(0x80 | (c >> (6 * i) & 0x3f));
    }

    static bool is_word(char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
               c == '+' || c == '-' || c == '.';
    }

    void skip_space() {
        while (at_ < text_.size() &&
               std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos)
            ++at_;
    }

    char peek() {
        if (at_ >= text_.size()) fail("the text ends too early");
        return text_[at_];
    }

    char next() {
        const char c = peek();
        ++at_;
        return c;
    }

    [[noreturn]] void fail(const std::string& what) const {
        throw Error(source_ + " is no JSON: " + what + " at byte " + std::to_string(at_));
    }

    std::string_view text_;
    const std::string& source_;
    std::size_t at_ = 0;
};

inline Json Json::parse(std::string_view text, const std::string& source) {
    return JsonReader(text, source).document();
}

}  // namespace xec
