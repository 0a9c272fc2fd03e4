#include "linear/sealed/messages.h"

#include <string>

#include "base/error.h"
#include "linear/messages.h"

namespace hesplit {

std::size_t sealed_layer_bytes(const Parameters& parameters) {
    return parameter_bytes(parameters) + 4 + 4 + 1 + 1;
}

void write_sealed_layer(WireWriter& writer, const Parameters& parameters, const SealedLayer& layer) {
    write_parameters(writer, parameters);
    writer.u32(static_cast<std::uint32_t>(layer.features));
    writer.u32(static_cast<std::uint32_t>(layer.outputs));
    writer.u8(static_cast<std::uint8_t>(layer.bits.logits));
    writer.u8(static_cast<std::uint8_t>(layer.bits.input_gradient));
}

Parameters read_sealed_parameters(WireReader& reader) {
    Parameters parameters = read_parameters(reader);
    try {
        check_sealed(parameters);
    } catch (const ParameterError& error) {
        throw WireError(std::string("sealed weights under parameters that are not for them: ") + error.what());
    }
    return parameters;
}

SealedLayer read_sealed_layer(WireReader& reader, const Parameters& parameters) {
    SealedLayer layer;
    layer.features = reader.u32();
    layer.outputs = reader.u32();
    if (layer.features < 1 || !possible_layer(layer.features + 1, layer.outputs)) {
        throw WireError("sealed weights of an impossible layer of " + std::to_string(layer.features) + " -> " +
                        std::to_string(layer.outputs));
    }
    layer.bits.logits = reader.u8();
    layer.bits.input_gradient = reader.u8();
    const int most = most_sealed_bits(parameters.ring_degree(), parameters.total_bits());
    for (const int bits : {layer.bits.logits, layer.bits.input_gradient}) {
        if (bits < 1 || bits > most) {
            throw WireError("sealed weights with an impossible number of reply bits");
        }
    }
    return layer;
}

}  // namespace hesplit
