#include "linear/sealed/messages.h"

#include <string>

#include "base/error.h"
#include "linear/messages.h"

namespace hesplit {

void write_sealed_bits(WireWriter& writer, const SealedBits& bits) {
    writer.u8(static_cast<std::uint8_t>(bits.logits));
    writer.u8(static_cast<std::uint8_t>(bits.input_gradient));
    writer.u8(static_cast<std::uint8_t>(bits.gradient_dropped));
}

SealedBits read_sealed_bits(WireReader& reader, const Parameters& parameters) {
    SealedBits bits;
    bits.logits = reader.u8();
    bits.input_gradient = reader.u8();
    bits.gradient_dropped = reader.u8();
    const int most = most_sealed_bits(parameters.total_bits());
    for (const int reply : {bits.logits, bits.input_gradient}) {
        if (reply < 1 || reply > most) {
            throw WireError("sealed weights with an impossible number of reply bits");
        }
    }
    return bits;
}

std::size_t sealed_layer_bytes(const Parameters& parameters) {
    return parameter_bytes(parameters) + 4 + 4 + kSealedBitsBytes;
}

void write_sealed_layer(WireWriter& writer, const Parameters& parameters, const SealedLayer& layer) {
    write_parameters(writer, parameters);
    writer.u32(static_cast<std::uint32_t>(layer.features));
    writer.u32(static_cast<std::uint32_t>(layer.outputs));
    write_sealed_bits(writer, layer.bits);
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
    if (!possible_layer(layer.features, layer.outputs)) {
        throw WireError("sealed weights of an impossible layer of " + std::to_string(layer.features) + " -> " +
                        std::to_string(layer.outputs));
    }
    layer.bits = read_sealed_bits(reader, parameters);
    return layer;
}

}  // namespace hesplit
