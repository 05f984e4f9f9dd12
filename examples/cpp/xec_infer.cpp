// `xec_infer MODEL INPUT`: what an exported network says about the events of a file.
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "events.hpp"
#include "float_file.hpp"
#include "xec_model.hpp"
#ifdef XEC_WITH_ROOT
#include "root_file.hpp"
#endif

namespace {

constexpr const char* usage = R"(usage: xec_infer MODEL [INPUT [options]]

Runs a model that python -m xec_jax.export wrote on the events of a file, and prints events/s.
Without INPUT, says what the model reads and returns.

  --output O    where predictions go: a ROOT file if O ends in .root, else a file of floats
  --batch N     events per call of the network (default: 64)
  --threads N   threads that share a call (default: 1)
  --tree T      tree of a ROOT file (default: tree)
  --overwrite   replace an existing output
  --force       go on where the values are on another scale than the network expects
  --no_verify   load the model without its checksum

exit codes:
  0  done
  2  the user's input: model, file of events, options
  4  the disk: a folder that cannot be written, no space left
)";

struct Options {
    std::string model, input, output, tree = "tree";
    int batch = 64, threads = 1;
    bool overwrite = false, force = false, verify = true, help = false;
};

int number(const std::string& option, const std::string& text, int most) {
    int value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > most)
        throw xec::Error(option + " " + text, "a whole number from 1 to " + std::to_string(most));
    return value;
}

Options parse(const std::vector<std::string>& words) {
    Options options;
    std::vector<std::string> files;
    for (std::size_t i = 0; i < words.size(); ++i) {
        const std::string& word = words[i];
        const auto value = [&] {
            if (++i == words.size()) throw xec::Error(word + " without a value", "", "see --help");
            return words[i];
        };
        if (word == "--output")
            options.output = value();
        else if (word == "--batch")
            options.batch = number(word, value(), 1 << 20);
        else if (word == "--threads")
            options.threads = number(word, value(), 256);
        else if (word == "--tree")
            options.tree = value();
        else if (word == "--overwrite")
            options.overwrite = true;
        else if (word == "--force")
            options.force = true;
        else if (word == "--no_verify")
            options.verify = false;
        else if (word == "--help" || word == "-h")
            options.help = true;
        else if (word.substr(0, 1) == "-")
            throw xec::Error("unknown option " + word, "", "see --help");
        else
            files.push_back(word);
    }
    if (options.help) return options;
    if (files.empty() || files.size() > 2)
        throw xec::Error(std::to_string(files.size()) + " files", "MODEL, or MODEL and INPUT",
                         "see --help");
    options.model = files[0];
    if (files.size() == 2) options.input = files[1];
    return options;
}

/// Compares the manifest beside a model, where there is one, with what the model carries itself.
void check_manifest(const std::string& model, const xec::Manifest& manifest) {
    const std::string path = model + ".json";
    if (!std::filesystem::exists(path)) return;
    const xec::Json beside = xec::Json::parse(xec::read_file(path), path);
    for (const std::string& key : beside.keys()) {
        if (key == "model" || key == "sha256" || key == "bytes") continue;  // only known outside
        const xec::Json* inside = manifest.document.find(key);
        if (!inside || !(*inside == beside.at(key)))
            throw xec::Error(path + ": '" + key + "' is not what " + model + " says itself",
                             "the manifest that was exported with the model",
                             "copy both again; the model carries its own description");
    }
}

bool begins_with(const std::string& path, std::string_view magic) {
    std::string begin(magic.size(), '\0');
    return std::ifstream(path, std::ios::binary)
               .read(begin.data(), std::streamsize(begin.size())) &&
           begin == magic;
}

std::unique_ptr<Source> open_source(const Options& options, const xec::Manifest& manifest) {
    if (!std::filesystem::is_regular_file(options.input))
        throw xec::Error(options.input + " is no file that exists", "a file of events");
    if (!begins_with(options.input, "root"))
        return std::make_unique<FloatSource>(options.input, manifest);
#ifdef XEC_WITH_ROOT
    return std::make_unique<RootSource>(options.input, manifest, options.tree);
#else
    throw xec::Error(options.input + " is a ROOT file", "a file of floats: built without ROOT",
                     "convert it with root_floats.py, or build where CMake finds ROOT");
#endif
}

std::unique_ptr<Sink> open_sink(const Options& options, const xec::Manifest& manifest) {
    if (options.output.empty()) return nullptr;
    const std::filesystem::path path = options.output;
    for (const std::string& input : {options.model, options.input})
        if (std::filesystem::exists(path) && std::filesystem::equivalent(path, input))
            throw xec::Error(options.output + " is an input as well", "another --output");
    if (std::filesystem::exists(path) && !options.overwrite)
        throw xec::Error(options.output + " exists", "a new file",
                         "choose another --output, or --overwrite");
    if (path.extension() != ".root")
        return std::make_unique<FloatSink>(options.output, manifest.outputs);
#ifdef XEC_WITH_ROOT
    return std::make_unique<RootSink>(options.output, manifest.outputs, manifest.text);
#else
    throw xec::Error("--output " + options.output, "another ending than .root: built without ROOT",
                     "write floats and convert them with root_floats.py");
#endif
}

void print_model(const xec::Manifest& manifest) {
    std::cout << "task " << manifest.task << ", " << manifest.part
              << (manifest.raw ? ", normalization inside" : ", wants normalized values") << "\n";
    const auto print = [](const char* title, const xec::Field& field) {
        std::cout << title << " " << xec::describe({field});
        if (!field.about.empty()) std::cout << ": " << field.about;
        std::cout << "\n";
    };
    for (const xec::Field& field : manifest.inputs) print("input ", field);
    for (const xec::Field& field : manifest.outputs) print("output", field);
    for (const auto& [input, branch] : manifest.branches)
        std::cout << "branch " << branch << " of ROOT files for " << input << "\n";
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

void infer(const Options& options, const xec::Model& model) {
    const auto source = open_source(options, model.manifest());
    const std::size_t events = source->size();
    if (events == 0) throw xec::Error(options.input + " has no events");
    if (!options.force) {
        const Batch some = source->read(0, std::min<std::size_t>(events, 64));
        try {
            xec::check_scheme(model.manifest(), some.inputs, options.input);
        } catch (const xec::Error& error) {
            throw xec::Error(std::string(error.what()) + "; --force to go on all the same");
        }
    }
    const auto sink = open_sink(options, model.manifest());
    const auto batch_size = static_cast<std::size_t>(options.batch);
    double in_network = 0;
    const auto begin = Clock::now();
    for (std::size_t first = 0; first < events; first += batch_size) {
        const Batch batch = source->read(first, std::min(batch_size, events - first));
        const auto asked = Clock::now();
        const auto predictions = model.run({batch.inputs.begin(), batch.inputs.end()});
        in_network += seconds_since(asked);
        if (sink) sink->write(batch, predictions);
    }
    if (sink) sink->finish();
    const double seconds = seconds_since(begin);
    const auto n = static_cast<double>(events);
    std::printf("%zu events in %.4g s, %.1f events/s; the network alone %.1f events/s\n", events,
                seconds, n / seconds, n / in_network);
    std::printf("batches of %d, %d thread%s, onnxruntime %s\n", options.batch, options.threads,
                options.threads == 1 ? "" : "s", Ort::GetVersionString().c_str());
    if (sink) std::printf("wrote %s\n", options.output.c_str());
}

}  // namespace

int main(int count, char** words) try {
    const Options options = parse({words + 1, words + count});
    if (options.help) {
        std::cout << usage;
        return 0;
    }
    const auto verify = options.verify ? xec::Verify::sha256 : xec::Verify::nothing;
    const xec::Model model(options.model, options.threads, verify);
    check_manifest(options.model, model.manifest());
    if (options.input.empty())
        print_model(model.manifest());
    else
        infer(options, model);
    return 0;
} catch (const xec::DiskError& error) {
    std::cerr << "xec_infer: " << error.what() << "\n";
    return 4;
} catch (const xec::Error& error) {
    std::cerr << "xec_infer: " << error.what() << "\n";
    return 2;
} catch (const std::exception& error) {
    std::cerr << "xec_infer: unexpected error: " << error.what() << "\n";
    return 1;
}
