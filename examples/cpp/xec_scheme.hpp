// Are these values on the scale that a model expects?
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "xec_error.hpp"
#include "xec_manifest.hpp"

namespace xec {

/// Values by the name of their input or output, event after event.
using Values = std::map<std::string, std::vector<float>>;

/// Tells whether the amplitudes of the sensors are in this input: `npho`, or `input`, whose last
/// axis is amplitude and time.
inline bool has_amplitudes(const Field& field) {
    const bool has_features = !field.shape.empty() && field.shape.back() == 2;
    return field.name == "npho" || (field.name == "input" && has_features);
}

/// Refuses photons where the network wants fractions or normalized values, and the reverse.
///
/// Looks at the 99.9th percentile of the valid amplitudes: in photons it is far above 1.5, as a
/// fraction or normalized far below 100.
///
/// @param inputs  some events, at best several dozens
/// @param source  what errors call them
inline void check_scheme(const Manifest& manifest, const Values& inputs,
                         const std::string& source) {
    const std::vector<Field>& fields = manifest.inputs;
    const auto field = std::find_if(fields.begin(), fields.end(), has_amplitudes);
    if (field == fields.end()) return;
    std::vector<float> valid;
    const std::vector<float>& values = inputs.at(field->name);
    for (std::size_t i = 0; i < values.size(); i += field->name == "input" ? 2 : 1)
        if (values[i] > 0 && values[i] <= 9e9f) valid.push_back(values[i]);
    if (valid.empty()) return;
    const auto rank = static_cast<std::ptrdiff_t>(0.999 * static_cast<double>(valid.size() - 1));
    std::nth_element(valid.begin(), valid.begin() + rank, valid.end());
    const float high = valid[static_cast<std::size_t>(rank)];
    const auto branch = manifest.branches.find("npho");
    const bool wants_shares =
        branch != manifest.branches.end() && branch->second.find("relative") != std::string::npos;
    const bool wants_photons = manifest.raw && !wants_shares;
    if (wants_photons ? high > 1.5f : high <= 100.0f) return;
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", static_cast<double>(high));
    const std::string found = source + ": the 99.9th percentile of npho is " + text;
    if (wants_photons)
        throw Error(found, "photons, far above 1.5: the model normalizes them itself",
                    "give the branch npho, not relative_npho and no normalized values");
    if (manifest.raw)
        throw Error(found, "shares of the largest sensor, which end at 1",
                    "give relative_npho, or take a model that was trained with npho");
    throw Error(found,
                "normalized values, far below 100: this model does not normalize them itself",
                "normalize as the manifest says, or export the model with its normalization");
}

}  // namespace xec
