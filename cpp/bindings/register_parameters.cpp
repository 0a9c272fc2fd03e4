#include <pybind11/stl.h>

#include <cmath>
#include <memory>

#include "bindings/bindings.h"
#include "ckks/slot_ring.h"
#include "linear/messages.h"
#include "linear/precision.h"
#include "linear/sealed/plan.h"
#include "ring/ring.h"
#include "rlwe/parameters.h"

namespace py = pybind11;

namespace hesplit {

namespace {

Packing packing_of(const std::string& name) {
    if (name == "blocks" || name == "slots") {
        return name == "blocks" ? Packing::blocks : Packing::slots;
    }
    throw ParameterError("packing must be \"blocks\" or \"slots\", got \"" + name + "\"");
}

Security security_of(const std::string& name) {
    if (name == "standard" || name == "paper") {
        return name == "standard" ? Security::standard : Security::paper;
    }
    throw ParameterError("security must be \"standard\" or \"paper\", got \"" + name + "\"");
}

Parameters make(std::size_t ring_degree, std::vector<int> modulus_bits, double scale, const std::string& packing,
                const std::string& security, double activation_bound, double activation_norm, double error_bound,
                std::size_t batch_size, std::uint32_t releases, std::uint32_t updates) {
    return Parameters({ring_degree, std::move(modulus_bits), scale, packing_of(packing), security_of(security),
                       activation_bound, activation_norm, error_bound, batch_size, releases, updates});
}

// What planning needs of one choice of primes: layouts and scales, without a key.
class Planner {
  public:
    Planner(const Parameters& parameters, std::size_t features, std::size_t outputs, std::size_t samples,
            double weight_norm, double byte_ns)
        : choice_(parameters.choice()), features_(features), samples_(samples), byte_ns_(byte_ns) {
        norms_.largest = norms_.l2 = weight_norm;
        norms_.reach = choice_.activation_norm * weight_norm;
        if (parameters.packing() == Packing::blocks) {
            ring_ = std::make_unique<Ring>(parameters.ring_degree(), parameters.primes());
            codec_ = std::make_unique<PolynomialCodec>(*ring_, dropped_bits(*ring_));
            blocks_ = plan_blocks(ring_->degree(), features, outputs, samples,
                                  {ring_->prime_count(), codec_->bits_per_coefficient(), kTypicalReplyBits, byte_ns});
            norms_.group_l2 = weight_norm * std::sqrt(static_cast<double>(blocks_.per_product()));
        } else {
            slot_ring_ = std::make_unique<SlotRing>(parameters);
            codec_ = std::make_unique<PolynomialCodec>(slot_ring_->data(), dropped_bits(slot_ring_->data()));
            slots_ = plan_slots(slot_ring_->slots(), features, outputs, choice_.batch_size, allow_babies(*slot_ring_),
                                false);
        }
    }

    Scaling scaling(double scale) const {
        ParameterChoice choice = choice_;
        choice.scale = scale;
        return ring_ ? scale_blocks(choice, *ring_, norms_, features_, blocks_.per_product(), {})
                     : scale_slots(choice, *slot_ring_, norms_, slots_);
    }

    // The deviation of the noise that floods every logit of one batch, 0 without releases.
    double flooding(double scale, const Scaling& found) const {
        if (choice_.releases == 0 || !ring_ || scale == 0) {
            return 0;
        }
        ParameterChoice choice = choice_;
        choice.scale = scale;
        const double l1 = agreed_weight_l1(choice, *ring_, features_, blocks_.per_product(), found.product_scale);
        return flood_deviation(choice.releases, samples_ * blocks_.outputs,
                               released_noise(*ring_, l1, found.reply_bits)) /
               found.reply_scale;
    }

    // With releases the power of two with the least flooding that keeps the error bound; otherwise the one with the
    // shortest reply, among those the one with the least error; 0 if none keeps the bound.
    double best_scale() const {
        double best = 0;
        Scaling found;
        for (int bits = 8; bits <= 50; ++bits) {
            const double scale = std::ldexp(1.0, bits);
            try {
                const Scaling scaling_here = scaling(scale);
                const bool better = choice_.releases > 0 ? flooding(scale, scaling_here) < flooding(best, found)
                                                         : scaling_here.reply_bits < found.reply_bits ||
                                                               (scaling_here.reply_bits == found.reply_bits &&
                                                                scaling_here.error < found.error);
                if (best == 0 || better) {
                    best = scale;
                    found = scaling_here;
                }
            } catch (const RangeError&) {
                continue;
            }
        }
        return best;
    }

    py::dict describe() const {
        const Scaling found = scaling(choice_.scale);
        py::dict result, layout;
        const std::size_t rows = ring_ ? blocks_.group_size : slots_.group_size();
        const std::size_t inputs = ring_ ? blocks_.inputs() : slots_.inputs();
        const std::size_t products = ring_ ? blocks_.products() : slots_.products();
        const std::size_t groups = (samples_ + rows - 1) / rows;
        const std::size_t degree = choice_.ring_degree;
        layout["rows"] = rows;
        layout["width"] = ring_ ? blocks_.width : slots_.width;
        layout["inputs"] = inputs;
        layout["products"] = products;
        if (slot_ring_) {
            layout["period"] = slots_.period;
            layout["babies"] = slots_.babies;
            layout["giants"] = slots_.giants();
            layout["rotations"] = rotation_steps(slots_).size();
        }
        const std::size_t coefficients = degree + (ring_ ? blocks_.per_product() * rows : degree);
        result["layout"] = layout;
        result["error"] = found.error;
        result["reply_bits"] = found.reply_bits;
        result["flooding_deviation"] = flooding(choice_.scale, found);
        result["request_bytes"] = groups * inputs * codec_->bytes();
        result["reply_bytes"] = groups * products * packed_bytes(coefficients, found.reply_bits);
        if (ring_) {
            const BlockMedium medium{ring_->prime_count(), codec_->bits_per_coefficient(),
                                     static_cast<double>(found.reply_bits), byte_ns_};
            const BlockCost cost = block_cost(blocks_, medium, samples_);
            result["client_seconds"] = cost.client * 1e-9;
            result["server_seconds"] = cost.server * 1e-9;
            result["link_seconds"] = cost.link * 1e-9;
        }
        return result;
    }

  private:
    ParameterChoice choice_;
    std::size_t features_;
    std::size_t samples_;
    double byte_ns_;
    WeightNorms norms_;
    std::unique_ptr<Ring> ring_;
    std::unique_ptr<SlotRing> slot_ring_;
    std::unique_ptr<PolynomialCodec> codec_;
    BlockLayout blocks_;
    SlotLayout slots_;
};

py::dict estimate(const Parameters& parameters, std::size_t features, std::size_t outputs, std::size_t samples,
                  double weight_norm, double byte_ns) {
    return Planner(parameters, features, outputs, samples, weight_norm, byte_ns).describe();
}

double best_scale(const Parameters& parameters, std::size_t features, std::size_t outputs, std::size_t samples,
                  double weight_norm, double byte_ns) {
    return Planner(parameters, features, outputs, samples, weight_norm, byte_ns).best_scale();
}

// One training step of sealed weights; None when the parameters cannot keep their error bound.
py::object estimate_sealed(const Parameters& parameters, std::size_t features, std::size_t outputs,
                           double weight_norm) {
    const Ring ring(parameters.ring_degree(), parameters.primes());
    const PolynomialCodec codec(ring, dropped_bits(ring));
    const ParameterChoice& choice = parameters.choice();
    const BlockLayout layout =
        plan_sealed(choice, features + 1, outputs, codec.bits_per_coefficient(), kTypicalReplyBits);
    SealedScaling scaling;
    try {
        scaling = scale_sealed(choice, ring, layout, weight_norm);
    } catch (const RangeError&) {
        return py::none();
    }
    const std::size_t groups = (choice.batch_size + layout.group_size - 1) / layout.group_size;
    const std::size_t inputs = layout.inputs(), products = layout.products();
    py::dict result;
    result["error"] = scaling.error;
    result["reply_bits"] = scaling.logit_bits;
    result["rows"] = layout.group_size;
    result["width"] = layout.width;
    result["inputs"] = inputs;
    result["products"] = products;
    result["request_bytes"] = groups * inputs * codec.bytes();
    result["update_bytes"] = (groups * products + products * inputs) * codec.bytes();
    result["reply_bytes"] = groups * (products * 2 * packed_bytes(ring.degree(), scaling.logit_bits) +
                                      inputs * 2 * packed_bytes(ring.degree(), kInputGradientBits)) +
                            packed_bytes(choice.batch_size * outputs, scaling.logit_bits) +
                            packed_bytes(choice.batch_size * features, kInputGradientBits);
    return std::move(result);
}

py::bytes to_bytes(const std::vector<std::uint8_t>& bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

void register_parameters(py::module_& module) {
    module.def("max_modulus_bits", &max_modulus_bits, py::arg("ring_degree"));
    py::class_<Parameters>(module, "Parameters")
        .def(py::init(&make), py::kw_only(), py::arg("ring_degree"), py::arg("modulus_bits"), py::arg("scale"),
             py::arg("packing"), py::arg("security"), py::arg("activation_bound"), py::arg("activation_norm"),
             py::arg("error_bound"), py::arg("batch_size"), py::arg("releases"), py::arg("updates"))
        .def_property_readonly("ring_degree", &Parameters::ring_degree)
        .def_property_readonly("modulus_bits", [](const Parameters& p) { return p.choice().modulus_bits; })
        .def_property_readonly("scale", [](const Parameters& p) { return p.choice().scale; })
        .def_property_readonly("packing",
                               [](const Parameters& p) { return p.packing() == Packing::blocks ? "blocks" : "slots"; })
        .def_property_readonly(
            "security",
            [](const Parameters& p) { return p.choice().security == Security::standard ? "standard" : "paper"; })
        .def_property_readonly("activation_bound", [](const Parameters& p) { return p.choice().activation_bound; })
        .def_property_readonly("activation_norm", [](const Parameters& p) { return p.choice().activation_norm; })
        .def_property_readonly("error_bound", [](const Parameters& p) { return p.choice().error_bound; })
        .def_property_readonly("batch_size", [](const Parameters& p) { return p.choice().batch_size; })
        .def_property_readonly("releases", [](const Parameters& p) { return p.choice().releases; })
        .def_property_readonly("updates", [](const Parameters& p) { return p.choice().updates; })
        .def_property_readonly("primes", &Parameters::primes)
        .def_property_readonly("hash",
                               [](const Parameters& p) {
                                   return py::bytes(reinterpret_cast<const char*>(p.hash().data()), p.hash().size());
                               })
        .def("to_bytes", [](const Parameters& p) { return to_bytes(p.bytes()); })
        .def_static("from_bytes", [](const py::buffer& bytes) { return Parameters::parse(Bytes(bytes).view()); })
        .def("best_scale", &best_scale, py::arg("features"), py::arg("outputs"), py::arg("samples"),
             py::arg("weight_norm"), py::arg("byte_ns"))
        .def("estimate", &estimate, py::arg("features"), py::arg("outputs"), py::arg("samples"), py::arg("weight_norm"),
             py::arg("byte_ns"))
        .def("estimate_sealed", &estimate_sealed, py::arg("features"), py::arg("outputs"), py::arg("weight_norm"));
}

}  // namespace hesplit
