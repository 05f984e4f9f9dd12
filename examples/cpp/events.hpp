// Where events come from and where predictions go: what the two kinds of files have in common.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "xec_error.hpp"
#include "xec_scheme.hpp"

/// Some events; run and event number only where the file has them.
struct Batch {
    std::size_t events = 0;
    xec::Values inputs;
    std::vector<std::int64_t> run, event;
};

/// A file of events that can be read from any place.
class Source {
public:
    virtual ~Source() = default;
    virtual std::size_t size() const = 0;
    virtual Batch read(std::size_t first, std::size_t events) = 0;
};

/// A file of predictions; it gets its name when `finish` has written everything.
class Sink {
public:
    virtual ~Sink() = default;
    virtual void write(const Batch& batch, const xec::Values& predictions) = 0;
    virtual void finish() = 0;
};

/// A file under construction: a hidden name in the same folder, removed if it stays unfinished.
class NewFile {
public:
    explicit NewFile(const std::filesystem::path& path) : path_(path) {
        const std::string name = "." + path.filename().string() + ".";
        temporary_ = path.parent_path() / (name + std::to_string(::getpid()) + ".part");
    }
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;

    ~NewFile() {
        std::error_code ignored;
        std::filesystem::remove(temporary_, ignored);
    }

    const std::filesystem::path& temporary() const { return temporary_; }

    void rename() {
        std::error_code error;
        std::filesystem::rename(temporary_, path_, error);
        if (error) fail(error.message());
    }

    [[noreturn]] void fail(const std::string& why) const {
        throw xec::DiskError(path_.string() + " cannot be written: " + why, "",
                             "see the permissions of the folder and the space on its disk");
    }

private:
    std::filesystem::path path_, temporary_;
};
