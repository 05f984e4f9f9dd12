// The errors that a user can cause: what was found and where, what was expected, what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace xec {

/// An error with a readable text of one to three lines, as the Python commands write them.
class Error : public std::runtime_error {
public:
    explicit Error(const std::string& found, const std::string& expected = "",
                   const std::string& remedy = "")
        : std::runtime_error(found + line("expected: ", expected) + line("remedy:   ", remedy)) {}

private:
    static std::string line(const char* title, const std::string& text) {
        return text.empty() ? "" : std::string("\n  ") + title + text;
    }
};

/// A folder that cannot be written or a disk that is full.
class DiskError : public Error {
public:
    using Error::Error;
};

}  // namespace xec
