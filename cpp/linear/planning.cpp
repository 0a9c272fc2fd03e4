#include "linear/planning.h"

#include <cmath>

#include "base/error.h"
#include "linear/blocks/planning.h"
#include "linear/merged/planning.h"
#include "linear/slots/planning.h"
#include "linear/traces/planning.h"

namespace hesplit {

std::unique_ptr<const LayerPlan> plan_layer(const Parameters& parameters, const PlannedLayer& layer) {
    if (parameters.packing() == Packing::blocks) {
        return std::make_unique<const BlockPlan>(parameters, layer);
    }
    if (parameters.packing() == Packing::merged) {
        return std::make_unique<const MergedPlan>(parameters, layer);
    }
    if (parameters.traced()) {
        return std::make_unique<const TracePlan>(parameters, layer);
    }
    return std::make_unique<const SlotPlan>(parameters, layer);
}

double best_scale(const LayerPlan& plan, const ParameterChoice& choice) {
    const bool releases = choice.releases > 0;
    const int most = choice.private_bits != 0 ? 110 : 50;
    double best = 0;
    Scaling chosen;
    for (int bits = 8; bits <= most; ++bits) {
        const double scale = std::ldexp(1.0, bits);
        try {
            const Scaling found = plan.scaling(scale);
            const bool better =
                best == 0 || (releases ? plan.flooding(scale, found) < plan.flooding(best, chosen)
                                       : found.reply_bits < chosen.reply_bits ||
                                             (found.reply_bits == chosen.reply_bits && found.error < chosen.error));
            if (better) {
                best = scale;
                chosen = found;
            }
        } catch (const RangeError&) {
            continue;  // the parameters do not keep the error bound at this scale
        }
    }
    return best;
}

}  // namespace hesplit
