// What the tests ask about the headers: prints for Python to compare.
#include <atomic>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "float_file.hpp"
#include "xec_model.hpp"

namespace {

/// `sha256 N...`: the checksums of the first N bytes of the standard input.
void print_checksums(const std::string& bytes, const std::vector<std::string>& lengths) {
    for (const std::string& n : lengths)
        std::cout << xec::sha256(std::string_view(bytes).substr(0, std::stoul(n))) << "\n";
}

void print_json(const xec::Json& json, const std::string& path) {
    using Kind = xec::Json::Kind;
    if (json.kind() == Kind::text) std::cout << path << " " << xec::quoted(json.text()) << "\n";
    if (json.kind() == Kind::number) std::cout << path << " number\n";
    if (json.kind() == Kind::boolean) std::cout << path << " " << json.truth() << "\n";
    if (json.kind() == Kind::null) std::cout << path << " null\n";
    for (std::size_t i = 0; i < json.items().size(); ++i)
        print_json(json.items()[i],
                   path + "/" + (json.keys().empty() ? std::to_string(i) : json.keys()[i]));
}

/// `json`: the values of each document, one a line of the standard input, or why it is none.
void print_documents() {
    for (std::string line; std::getline(std::cin, line);) try {
            print_json(xec::Json::parse(line, "line"), "");
        } catch (const xec::Error& error) {
            std::cout << error.what() << "\n";
        }
}

/// `threads MODEL EVENTS N`: N threads ask one model, event by event, in different orders.
int ask_in_threads(const std::string& path, const std::string& file, std::size_t threads) {
    const xec::Model model(path);
    FloatSource source(file, model.manifest());
    std::vector<Batch> events;
    std::vector<xec::Values> alone;
    for (std::size_t i = 0; i < source.size(); ++i) {
        events.push_back(source.read(i, 1));
        alone.push_back(model.run({events[i].inputs.begin(), events[i].inputs.end()}));
    }
    std::atomic<std::size_t> equal = 0;
    std::vector<std::thread> team;
    for (std::size_t t = 0; t < threads; ++t)
        team.emplace_back([&, t] {
            for (std::size_t i = 0; i < 10 * events.size(); ++i) {
                const std::size_t k = (i * (2 * t + 1) + t) % events.size();
                const xec::Values& inputs = events[k].inputs;
                equal += model.run({inputs.begin(), inputs.end()}) == alone[k];
            }
        });
    for (std::thread& thread : team) thread.join();
    std::cout << equal << " of " << threads * 10 * events.size() << " answers are equal\n";
    return 0;
}

/// `calls MODEL`: calls with inputs that do not fit a model of npho (3) and time (3).
void call_wrongly(const std::string& path) {
    const xec::Model model(path);
    const std::vector<float> three(3), four(4), six(6);
    for (const xec::Views& views :
         std::vector<xec::Views>{{},
                                 {{"npho", three}},
                                 {{"npho", three}, {"times", three}},
                                 {{"npho", three}, {"time", six}},
                                 {{"npho", four}, {"time", four}},
                                 {{"npho", {three.data(), 0}}, {"time", {three.data(), 0}}},
                                 {{"npho", three}, {"time", three}, {"dead_mask", three}}})
        try {
            model.run(views);
            std::cout << "no error\n";
        } catch (const xec::Error& error) {
            std::cout << error.what() << "\n";
        }
}

}  // namespace

int main(int count, char** arguments) try {
    const std::vector<std::string> words(arguments + 1, arguments + count);
    const std::string& what = words.at(0);
    if (what == "sha256") {
        const std::string bytes{std::istreambuf_iterator<char>(std::cin), {}};
        print_checksums(bytes, {words.begin() + 1, words.end()});
    } else if (what == "json") {
        print_documents();
    } else if (what == "threads") {
        return ask_in_threads(words.at(1), words.at(2), std::stoul(words.at(3)));
    } else if (what == "calls") {
        call_wrongly(words.at(1));
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
}
