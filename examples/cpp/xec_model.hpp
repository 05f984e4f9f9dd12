// A trained network in a C++ program: everything an analyzer needs to ask one.
//
// Needs onnxruntime's C++ API, the other xec_*.hpp and the standard library (C++17).
#pragma once

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "xec_error.hpp"
#include "xec_manifest.hpp"
#include "xec_scheme.hpp"
#include "xec_sha256.hpp"

namespace xec {

/// Float values that belong to the caller, event after event; valid as long as he keeps them.
struct View {
    View(const float* data, std::size_t size) : data(data), size(size) {}
    View(const std::vector<float>& values) : View(values.data(), values.size()) {}
    template <std::size_t n>
    View(const float (&values)[n]) : View(values, n) {}

    const float* data;
    std::size_t size;
};

/// The values of each input, by name.
using Views = std::map<std::string, View>;

/// Reads a whole file.
inline std::string read_file(const std::filesystem::path& path) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored))
        throw Error(path.string() + " is no file that exists");
    std::ifstream stream(path, std::ios::binary);
    std::string bytes(std::filesystem::file_size(path), '\0');
    if (!stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size())))
        throw Error(path.string() + " cannot be read");
    return bytes;
}

enum class Verify { sha256, nothing };

/// A model that `python -m xec_jax.export` wrote.
///
/// Any number of threads may call `run` on one model at the same time.
class Model {
public:
    /// Loads a model, after comparing it with the checksum in `<path>.sha256`.
    ///
    /// @param path     the file model.onnx
    /// @param threads  threads that share one call of `run`
    /// @param verify   Verify::nothing to do without the checksum
    /// @throws Error   the file is missing, broken, of another exporter, or contradicts itself
    explicit Model(const std::string& path, int threads = 1, Verify verify = Verify::sha256)
        : path_(require_library(path)) {
        const std::string bytes = read_file(path);
        if (verify == Verify::sha256) check_sha256(bytes);
        Ort::SessionOptions options;
        options.SetIntraOpNumThreads(threads);
        try {
            session_ = Ort::Session(environment(), bytes.data(), bytes.size(), options);
        } catch (const Ort::Exception& error) {
            throw Error(path + ": onnxruntime cannot load it: " + error.what(),
                        "an ONNX file that python -m xec_jax.export wrote",
                        "copy or export the model again");
        }
        Ort::AllocatorWithDefaultOptions allocator;
        const auto text =
            session_.GetModelMetadata().LookupCustomMetadataMapAllocated("xec_jax", allocator);
        if (!text)
            throw Error(path + " does not say what its inputs and outputs mean",
                        "the key 'xec_jax' in the metadata of the model",
                        "export it with python -m xec_jax.export");
        manifest_ = Manifest::parse(text.get(), path + ", metadata 'xec_jax'");
        check_session();
    }

    const Manifest& manifest() const { return manifest_; }
    const std::vector<Field>& inputs() const { return manifest_.inputs; }
    const std::vector<Field>& outputs() const { return manifest_.outputs; }

    /// Asks the network about one event or a batch: as many as the inputs have room for.
    ///
    ///     model.run({{"npho", npho}, {"time", time}}).at("pred_energy")[0]
    ///
    /// @param views   all inputs of the model; arrays, vectors, or pointers with a size
    /// @returns       all outputs, event after event
    /// @throws Error  an input is missing, unknown, or of a size that does not fit
    Values run(const Views& views) const {
        const std::int64_t events = count_events(views);
        std::vector<Ort::Value> tensors;
        std::vector<const char*> input_names, output_names;
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        for (const Field& field : inputs()) {
            const View& view = views.at(field.name);
            const std::vector<std::int64_t> shape = batch_shape(field, events);
            // onnxruntime does not write to inputs; its interface just does not say so.
            tensors.push_back(Ort::Value::CreateTensor<float>(
                memory, const_cast<float*>(view.data), view.size, shape.data(), shape.size()));
            input_names.push_back(field.name.c_str());
        }
        for (const Field& field : outputs()) output_names.push_back(field.name.c_str());
        try {
            return collect(
                session_.Run(Ort::RunOptions{nullptr}, input_names.data(), tensors.data(),
                             tensors.size(), output_names.data(), output_names.size()),
                events);
        } catch (const Ort::Exception& error) {
            throw Error(path_ + ": onnxruntime failed on a batch of " + std::to_string(events) +
                            " events: " + error.what(),
                        "", "try smaller batches");
        }
    }

private:
    /// One environment per process, as onnxruntime wants it.
    static Ort::Env& environment() {
        static Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "xec_jax");
        return env;
    }

    /// Returns the path. Comes before the session exists: with a library older than the headers,
    /// whatever touches one ends the program with a null pointer.
    static const std::string& require_library(const std::string& path) {
        if (OrtGetApiBase()->GetApi(ORT_API_VERSION)) return path;
        throw Error(std::string("the library onnxruntime is version ") +
                        OrtGetApiBase()->GetVersionString(),
                    "1." + std::to_string(ORT_API_VERSION) + " or newer, as the headers",
                    "get both with get_onnxruntime.sh");
    }

    void check_sha256(const std::string& bytes) const {
        const std::string sidecar = path_ + ".sha256";
        std::error_code ignored;
        if (!std::filesystem::exists(sidecar, ignored))
            throw Error(sidecar + " is missing", "the checksum that was exported with the model",
                        "copy it, too, or load the model with Verify::nothing (--no_verify)");
        const std::string text = read_file(sidecar);
        const std::string wanted = text.substr(0, text.find_first_of(" \r\n"));
        const std::string found = sha256(bytes);
        if (found != wanted)
            throw Error(path_ + " is not the file that was exported: sha256 " + found + ", " +
                            std::to_string(bytes.size()) + " bytes",
                        "sha256 " + wanted + " (from " + sidecar + ")",
                        "copy the model and its checksum again");
    }

    /// Compares the graph with its description. Shapes of outputs, which a graph may leave open,
    /// are compared in `run`.
    void check_session() const {
        Ort::AllocatorWithDefaultOptions allocator;
        std::string found = "inputs", wanted = "inputs";
        for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
            const Ort::TypeInfo type = session_.GetInputTypeInfo(i);
            found += std::string(" ") + session_.GetInputNameAllocated(i, allocator).get() + " " +
                     type_text(type);
        }
        for (const Field& field : inputs())
            wanted += " " + field.name + " " + shape_text(batch_shape(field, -1));
        found += ", outputs", wanted += ", outputs";
        for (std::size_t i = 0; i < session_.GetOutputCount(); ++i)
            found += std::string(" ") + session_.GetOutputNameAllocated(i, allocator).get();
        for (const Field& field : outputs()) wanted += " " + field.name;
        if (found != wanted)
            throw Error(path_ + ": the graph differs from its description: " + found, wanted,
                        "export the model again");
    }

    static std::string type_text(const Ort::TypeInfo& type) {
        if (type.GetONNXType() != ONNX_TYPE_TENSOR) return "no tensor";
        const auto tensor = type.GetTensorTypeAndShapeInfo();
        return shape_text(tensor.GetShape()) + (is_float(tensor) ? "" : " of no float type");
    }

    template <typename Tensor>
    static bool is_float(const Tensor& tensor) {
        return tensor.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }

    static std::string shape_text(const std::vector<std::int64_t>& shape) {
        std::string text = Field{"", shape, "", ""}.shape_text();
        for (std::size_t at; (at = text.find("-1")) != text.npos;) text.replace(at, 2, "any");
        return text;
    }

    static std::vector<std::int64_t> batch_shape(const Field& field, std::int64_t events) {
        std::vector<std::int64_t> shape = {events};
        shape.insert(shape.end(), field.shape.begin(), field.shape.end());
        return shape;
    }

    std::int64_t count_events(const Views& views) const {
        std::string given;
        bool is_known = views.size() == inputs().size();
        for (const auto& [name, view] : views)
            given += (given.empty() ? "" : ", ") + name + " with " + std::to_string(view.size) +
                     " values";
        for (const Field& field : inputs()) is_known = is_known && views.count(field.name);
        if (is_known) {
            const std::size_t events = views.at(inputs()[0].name).size / inputs()[0].size();
            const auto fits = [&](const Field& field) {
                return views.at(field.name).size == events * field.size();
            };
            if (events > 0 && std::all_of(inputs().begin(), inputs().end(), fits))
                return static_cast<std::int64_t>(events);
        }
        throw Error("the inputs do not fit " + path_ + ": " + (given.empty() ? "none" : given),
                    "for each event " + describe(inputs()),
                    "give all inputs, with the values of the same whole number of events");
    }

    Values collect(const std::vector<Ort::Value>& tensors, std::int64_t events) const {
        Values values;
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            const Field& field = outputs()[i];
            const auto found = tensors[i].GetTensorTypeAndShapeInfo();
            const std::vector<std::int64_t> wanted = batch_shape(field, events);
            if (!is_float(found) || found.GetShape() != wanted)
                throw Error(path_ + ": output " + field.name + " came with shape " +
                                shape_text(found.GetShape()) +
                                (is_float(found) ? "" : ", no floats"),
                            "floats of shape " + shape_text(wanted), "export the model again");
            const float* data = tensors[i].GetTensorData<float>();
            values[field.name].assign(data, data + found.GetElementCount());
        }
        return values;
    }

    std::string path_;
    Manifest manifest_;
    mutable Ort::Session session_{nullptr};  // Run is thread-safe, but not declared const
};

}  // namespace xec
