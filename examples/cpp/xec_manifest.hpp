// What an exported model says about itself: names, shapes, units, branches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "xec_error.hpp"
#include "xec_json.hpp"

namespace xec {

/// An input or output of a model.
struct Field {
    std::string name;
    std::vector<std::int64_t> shape;  // of one event, without the batch; empty: one number
    std::string unit;
    std::string about;

    /// Numbers per event.
    std::size_t size() const {
        std::size_t product = 1;
        for (const std::int64_t n : shape) product *= static_cast<std::size_t>(n);
        return product;
    }

    std::string shape_text() const {
        std::string text = "(";
        for (const std::int64_t n : shape) text += (text == "(" ? "" : ", ") + std::to_string(n);
        return text + ")";
    }
};

/// Returns "npho (4760) photons, time (4760) s".
inline std::string describe(const std::vector<Field>& fields) {
    std::string text;
    for (const Field& field : fields) {
        text += (text.empty() ? "" : ", ") + field.name + " " + field.shape_text();
        if (!field.unit.empty()) text += " " + field.unit;
    }
    return text;
}

/// Reads fields from a list of objects with name, shape and, perhaps, unit and about.
inline std::vector<Field> read_fields(const Json& list) {
    constexpr std::int64_t largest = std::numeric_limits<std::int32_t>::max();
    std::vector<Field> fields;
    for (const Json& item : list.list()) {
        Field field;
        field.name = item.at("name").text();
        std::int64_t size = 1;
        for (const Json& n : item.at("shape").list()) {
            field.shape.push_back(n.integer());
            if (field.shape.back() < 1 || field.shape.back() > largest / size)
                throw Error("'" + field.name + "' has the impossible shape " + field.shape_text());
            size *= field.shape.back();
        }
        if (const Json* unit = item.find("unit")) field.unit = unit->text();
        if (const Json* about = item.find("about")) field.about = about->text();
        fields.push_back(field);
    }
    return fields;
}

/// The facts about a model that its users need; `document` has all the others.
struct Manifest {
    static constexpr int format = 1;

    std::string task;  // regress, mae, inpaint ...
    std::string part;  // network or encoder
    bool raw = false;  // photons and seconds in, physical units out
    std::vector<Field> inputs;
    std::vector<Field> outputs;
    std::map<std::string, std::string> branches;  // input -> branch of ROOT files
    Json document;                                // all facts
    std::string text;                             // the same as it was written

    /// Reads the JSON text that an exported model carries. `source` is for errors.
    static Manifest parse(std::string_view text, const std::string& source) {
        Manifest manifest;
        manifest.document = Json::parse(text, source);
        manifest.text = text;
        try {
            manifest.read();
        } catch (const Error& error) {
            throw Error(source + ": " + error.what(),
                        "a description of format " + std::to_string(format),
                        "export the model again, and take programs and model from one version");
        }
        return manifest;
    }

private:
    void read() {
        const std::int64_t found = document.at("format").integer();
        if (found != format) throw Error("it has format " + std::to_string(found));
        task = document.at("task").text();
        part = document.at("part").text();
        raw = document.at("raw").truth();
        inputs = read_fields(document.at("inputs"));
        outputs = read_fields(document.at("outputs"));
        if (inputs.empty() || outputs.empty()) throw Error("it names no inputs or no outputs");
        const Json* names = document.find("branches");
        for (std::size_t i = 0; names && i < names->keys().size(); ++i)
            if (names->items()[i].kind() == Json::Kind::text)  // null: the network reads none
                branches[names->keys()[i]] = names->items()[i].text();
    }
};

}  // namespace xec
