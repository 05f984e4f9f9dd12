// A network inside an analyzer, as short as it gets: the README shows this file.
#include <iostream>

#include "xec_model.hpp"

int main(int n, char** arguments) try {
    const xec::Model model(n > 1 ? arguments[1] : "model.onnx");  // once, not for every event

    static float npho[4760], time[4760];  // photons and s, as the analyzer has them; 1e10: no value
    for (int sensor = 0; sensor < 4760; ++sensor) {
        npho[sensor] = sensor % 100 ? 20.0f : 2000.0f;
        time[sensor] = sensor % 100 ? 1e10f : 2e-8f;
    }
    const xec::Values predictions = model.run({{"npho", npho}, {"time", time}});
    for (const xec::Field& field : model.outputs())
        for (const float value : predictions.at(field.name))
            std::cout << field.name << " " << value << " " << field.unit << "\n";
} catch (const xec::Error& error) {
    std::cerr << error.what() << "\n";
    return 2;
}
