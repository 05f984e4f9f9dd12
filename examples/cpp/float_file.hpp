// Files of floats: one line of JSON that says what is in them, then float32, little-endian.
//
// The line: {"xec_jax_floats": 1, "columns": [{"name": "npho", "shape": [4760],
// "unit": "photons", "branch": "npho"}, ...]}. After it, event after event, in each the columns
// in their order. Unit and branch (of the ROOT file that the values come from) may be left out.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "events.hpp"
#include "xec_json.hpp"
#include "xec_manifest.hpp"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "files of floats are little-endian; this machine would have to swap bytes"
#endif

/// Reads the inputs of a model from a file of floats; other columns are skipped.
class FloatSource : public Source {
public:
    FloatSource(const std::string& path, const xec::Manifest& manifest)
        : path_(path), stream_(path, std::ios::binary) {
        std::string header;
        if (stream_.peek() != '{' || !std::getline(stream_, header))
            fail("no first line that says what is in it");
        begin_ = static_cast<std::uintmax_t>(stream_.tellg());
        const xec::Json json = xec::Json::parse(header, path + ", first line");
        try {
            const std::int64_t format = json.at("xec_jax_floats").integer();
            if (format != 1) throw xec::Error("its format is " + std::to_string(format));
            columns_ = xec::read_fields(json.at("columns"));
        } catch (const xec::Error& error) {
            fail(error.what());
        }
        std::set<std::string> names;
        for (const xec::Field& column : columns_) {
            width_ += column.size();
            if (!names.insert(column.name).second) fail("two columns " + column.name);
        }
        for (const xec::Field& field : manifest.inputs) find(field);
        check_branches(json.at("columns"), manifest);
        const std::uintmax_t bytes = std::filesystem::file_size(path) - begin_;
        if (bytes % (4 * width_))
            throw xec::Error(
                path + ": " + std::to_string(bytes) + " bytes after the first line",
                "a multiple of " + std::to_string(4 * width_) +
                    ", the bytes of an event: " + xec::describe(columns_),
                "the file was cut, or has other columns than its first line says: write it again");
        size_ = bytes / (4 * width_);
        for (const xec::Field& field : manifest.inputs) wanted_.push_back(field.name);
    }

    std::size_t size() const override { return size_; }

    Batch read(std::size_t first, std::size_t events) override {
        std::vector<float> rows(events * width_);
        stream_.seekg(static_cast<std::streamoff>(begin_ + 4 * width_ * first));
        if (!stream_.read(reinterpret_cast<char*>(rows.data()),
                          static_cast<std::streamsize>(4 * rows.size())))
            throw xec::Error(path_ + ": events from " + std::to_string(first) +
                             " on cannot be read");
        Batch batch;
        batch.events = events;
        for (const std::string& name : wanted_) {
            std::size_t offset = 0, i = 0;
            for (; columns_[i].name != name; ++i) offset += columns_[i].size();
            std::vector<float>& values = batch.inputs[name];
            for (std::size_t event = 0; event < events; ++event) {
                const float* begin = rows.data() + event * width_ + offset;
                values.insert(values.end(), begin, begin + columns_[i].size());
            }
        }
        return batch;
    }

private:
    void find(const xec::Field& field) const {
        for (const xec::Field& column : columns_) {
            if (column.name != field.name) continue;
            const bool has_unit = !column.unit.empty() && !field.unit.empty();
            if (column.shape == field.shape && (!has_unit || column.unit == field.unit)) return;
        }
        throw xec::Error(path_ + " has " + xec::describe(columns_),
                         xec::describe({field}) + ", an input of the model",
                         "write it with root_floats.py and the manifest of this model");
    }

    void check_branches(const xec::Json& columns, const xec::Manifest& manifest) const {
        for (const xec::Json& column : columns.items()) {
            const xec::Json* branch = column.find("branch");
            const auto wanted = manifest.branches.find(column.at("name").text());
            if (!branch || wanted == manifest.branches.end()) continue;
            if (branch->text() != wanted->second)
                throw xec::Error(
                    path_ + ": " + wanted->first + " comes from the branch " + branch->text(),
                    "the branch " + wanted->second + ", which the network learned",
                    "write it with root_floats.py and the manifest of this model");
        }
    }

    [[noreturn]] void fail(const std::string& what) const {
        throw xec::Error(path_ + " is no file of floats: " + what,
                         "a first line {\"xec_jax_floats\": 1, \"columns\": ...}, see README.md",
                         "write it with root_floats.py");
    }

    std::string path_;
    std::ifstream stream_;
    std::uintmax_t begin_ = 0;          // of the first event, in bytes
    std::vector<xec::Field> columns_;   // of the file
    std::vector<std::string> wanted_;   // those that the model reads
    std::size_t width_ = 0, size_ = 0;  // floats per event, events
};

/// Writes predictions as a file of floats.
class FloatSink : public Sink {
public:
    FloatSink(const std::string& path, const std::vector<xec::Field>& outputs)
        : file_(path), outputs_(outputs), stream_(file_.temporary(), std::ios::binary) {
        stream_ << "{\"xec_jax_floats\": 1, \"columns\": [";
        for (const xec::Field& field : outputs) {
            if (&field != &outputs.front()) stream_ << ", ";
            stream_ << "{\"name\": " << xec::quoted(field.name) << ", \"shape\": [";
            for (std::size_t i = 0; i < field.shape.size(); ++i)
                stream_ << (i ? ", " : "") << field.shape[i];
            stream_ << "], \"unit\": " << xec::quoted(field.unit) << "}";
        }
        stream_ << "]}\n";
        check();
    }

    void write(const Batch& batch, const xec::Values& predictions) override {
        for (std::size_t event = 0; event < batch.events; ++event)
            for (const xec::Field& field : outputs_) {
                const float* begin = predictions.at(field.name).data() + event * field.size();
                stream_.write(reinterpret_cast<const char*>(begin),
                              static_cast<std::streamsize>(4 * field.size()));
            }
        check();
    }

    void finish() override {
        stream_.close();
        check();
        file_.rename();
    }

private:
    void check() const {
        if (!stream_) file_.fail(std::strerror(errno));
    }

    NewFile file_;
    std::vector<xec::Field> outputs_;
    std::ofstream stream_;
};
