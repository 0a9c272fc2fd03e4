// Is what the headers call safe to use from several threads free of data races? Built with ThreadSanitizer, which
// reports each and makes the program fail, and run (make tsan):
//
//   cmake -S . -B build/tsan -DHESPLIT_PYTHON=OFF -DHESPLIT_CHECKS=ON -DHESPLIT_SANITIZE=thread
//   cmake --build build/tsan --target threads && build/tsan/cpp/threads
//
// One stress for each class. Without the sanitizer it still checks that what threads compute at once is right.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/ahead.h"
#include "base/error.h"
#include "base/parallel.h"
#include "linear/client.h"
#include "linear/frozen/client.h"
#include "linear/frozen/server.h"
#include "linear/sealed/client.h"
#include "linear/sealed/server.h"
#include "linear/server.h"

using namespace hesplit;

namespace {

constexpr int kThreads = 4, kRounds = 50;
constexpr int kNever = 1 << 30;  // more rounds than are ever made
constexpr std::size_t kFeatures = 20, kOutputs = 3, kSamples = 4;

void expect(bool right, const char* what) {
    if (!right) {
        throw std::logic_error(std::string("wrong: ") + what);
    }
}

// Runs every task in a thread of its own; the first exception is rethrown.
void at_once(const std::vector<std::function<void()>>& tasks) {
    std::mutex mutex;
    std::exception_ptr error;
    std::vector<std::thread> threads;
    threads.reserve(tasks.size());
    for (const std::function<void()>& task : tasks) {
        threads.emplace_back([&task, &mutex, &error] {
            try {
                task();
            } catch (...) {
                const std::lock_guard<std::mutex> lock(mutex);
                error = std::current_exception();
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    if (error) {
        std::rethrow_exception(error);
    }
}

std::vector<std::function<void()>> times(int count, const std::function<void()>& task) {
    return std::vector<std::function<void()>>(static_cast<std::size_t>(count), task);
}

// Calls `work` until the key that it needs is destroyed, which must be refused and nothing else.
void until_destroyed(const std::function<void()>& work) {
    try {
        for (;;) {
            work();
        }
    } catch (const KeyMismatchError&) {
    }
}

View<const std::uint8_t> view(const std::string& bytes) {
    return {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
}
WireReader reader_of(const std::string& reply, MessageType type) {
    return WireReader(view(reply), type);
}
View<const double> view(const std::vector<double>& values) {
    return {values.data(), values.size()};
}

// Numbers within [-1, 1].
std::vector<double> numbers(std::size_t count) {
    std::vector<double> values(count);
    for (std::size_t i = 0; i < count; ++i) {
        values[i] = static_cast<double>(i * 7 % 17) / 8 - 1;
    }
    return values;
}

ParameterChoice choice(std::vector<int> modulus_bits, int scale_bits, double error_bound) {
    ParameterChoice choice;
    choice.ring_degree = 1024;
    choice.modulus_bits = std::move(modulus_bits);
    choice.scale = std::ldexp(1.0, scale_bits);
    choice.security = Security::paper;  // small rings: no secret is at stake
    choice.activation_bound = 4;
    choice.activation_norm = 8;
    choice.error_bound = error_bound;
    choice.batch_size = kSamples;
    return choice;
}

struct Exact {
    std::vector<double> x = numbers(kSamples * kFeatures), weight = numbers(kOutputs * kFeatures),
                        bias = numbers(kOutputs);

    bool right(const std::vector<double>& y, double bound) const {
        for (std::size_t s = 0; s < kSamples; ++s) {
            for (std::size_t o = 0; o < kOutputs; ++o) {
                double exact = bias[o];
                for (std::size_t i = 0; i < kFeatures; ++i) {
                    exact += x[s * kFeatures + i] * weight[o * kFeatures + i];
                }
                if (!(std::abs(y[s * kOutputs + o] - exact) <= bound)) {
                    return false;
                }
            }
        }
        return true;
    }
};

// The pool: loops from several threads, loops in loops, loops that throw, while the number of threads changes.
void stress_pool() {
    const auto loop = [] {
        for (int round = 0; round < 4 * kRounds; ++round) {
            // Iterations share nothing: a loop within one that runs alone may itself be divided among threads.
            std::vector<int> products(200);
            parallel_for(100, [&](std::size_t i) {
                parallel_for(2, [&](std::size_t j) { products[2 * i + j] = static_cast<int>(i * j); });
            });
            for (std::size_t i = 0; i < products.size(); ++i) {
                expect(products[i] == static_cast<int>(i / 2 * (i % 2)), "what a loop filled");
            }
            bool thrown = false;
            try {
                parallel_for(50, [](std::size_t i) {
                    if (i == 30) {
                        throw RangeError("thirty");
                    }
                });
            } catch (const RangeError&) {
                thrown = true;
            }
            expect(thrown, "the exception of a loop");
        }
    };
    std::vector<std::function<void()>> tasks = times(kThreads, loop);
    tasks.emplace_back([] {
        for (int round = 0; round < 4 * kRounds; ++round) {
            set_num_threads(1 + static_cast<std::size_t>(round) % 4);
            std::this_thread::yield();
        }
    });
    at_once(tasks);
}

// Calls `destroy` once every one of the tasks, which go on until they are refused, has been through its work `rounds`
// times.
void destroy_amid(const std::vector<std::function<void()>>& works, int rounds, const std::function<void()>& destroy) {
    std::vector<std::atomic<int>> done(works.size());
    std::vector<std::function<void()>> tasks;
    for (std::size_t i = 0; i < works.size(); ++i) {
        tasks.emplace_back([&, i] {
            const struct Ended {  // also when something is wrong: nobody must wait for ever
                std::atomic<int>& done;
                ~Ended() { done = kNever; }
            } ended{done[i]};
            until_destroyed([&] {
                works[i]();
                ++done[i];
            });
        });
    }
    tasks.emplace_back([&] {
        for (const std::atomic<int>& count : done) {
            while (count < rounds) {
                std::this_thread::yield();
            }
        }
        destroy();
    });
    at_once(tasks);
}

// A key by itself: saved, made ready for clients, destroyed.
void stress_key() {
    for (int round = 0; round < kRounds; ++round) {
        const std::shared_ptr<const SecretKey> key = SecretKey::generate(Parameters(choice({50}, 20, 0.1)));
        const std::function<void()> save = [&] { SecretKey::parse({key->bytes().data(), key->bytes().size()}); };
        const std::function<void()> begin = [&] { LinearClient(key, kFeatures, kOutputs).public_material(); };
        destroy_amid({save, save, begin, begin}, 2, [&] { key->destroy(); });
    }
}

// A client that threads use while one of them destroys it.
void stress_destroy(Packing packing, bool fresh_keys) {
    const Exact exact;
    ParameterChoice chosen = packing == Packing::slots ? choice({30, 30}, 10, 40) : choice({50}, 20, 0.1);
    chosen.packing = packing;
    for (int round = 0; round < kRounds; ++round) {
        LinearClient client(SecretKey::generate(Parameters(chosen)), kFeatures, kOutputs, fresh_keys);
        LinearServer server(view(client.public_material()), 16);
        server.set_weight(view(exact.weight), view(exact.bias));
        const std::function<void()> predict = [&] {
            std::vector<double> y(kSamples * kOutputs);
            const std::string reply = server.forward(view(client.encrypt(exact.x.data(), kSamples, false).bytes));
            client.decrypt(reader_of(reply, MessageType::reply), Purpose::local, false, y.data());
            expect(exact.right(y, chosen.error_bound), "logits");
        };
        const std::function<void()> material = [&] { client.public_material(); };
        destroy_amid({predict, predict, predict, material}, 2, [&] { client.destroy(); });
    }
}

// LinearClient and LinearServer, one of each for all threads: whole training steps, other weights, public material.
void stress_linear(Packing packing, bool fresh_keys) {
    const Exact exact;
    ParameterChoice chosen = packing == Packing::blocks ? choice({40, 40}, 30, 0.1) : choice({30, 30}, 10, 40);
    chosen.packing = packing;
    chosen.releases = fresh_keys ? 1 : 0;
    LinearClient client(SecretKey::generate(Parameters(chosen)), kFeatures, kOutputs, fresh_keys, true);
    LinearServer server(view(client.public_material()), 16);
    server.set_weight(view(exact.weight), view(exact.bias));
    const std::vector<double> gradient = numbers(kSamples * kOutputs);

    std::vector<std::function<void()>> tasks = times(kThreads, [&] {
        for (int round = 0; round < kRounds; ++round) {
            const std::string request = client.encrypt(exact.x.data(), kSamples, false).bytes;
            std::shared_ptr<const LinearServer::Kept> kept;
            const std::string reply = server.forward(view(request), nullptr, &kept);
            expect(server.cost(view(request), true).reply_bytes == reply.size(), "cost");
            expect(client.samples_of(reader_of(reply, MessageType::reply)) == kSamples, "samples");
            std::vector<double> y(kSamples * kOutputs), weight_gradient(kOutputs * kFeatures);
            client.decrypt(reader_of(reply, MessageType::reply), Purpose::local, true, y.data());
            expect(exact.right(y, chosen.error_bound), "logits");
            std::shared_ptr<const LinearServer::Masked> masked;
            const std::string message = server.weight_gradient(*kept, view(gradient), masked);
            const std::string opened = client.open_weight_gradient(view(message), view(gradient));
            server.unmask(*masked, view(opened), weight_gradient.data());
        }
    });
    tasks.emplace_back([&] {
        for (int round = 0; round < kRounds; ++round) {
            server.set_weight(view(exact.weight), view(exact.bias));
        }
    });
    tasks.emplace_back([&] {
        for (int round = 0; round < kRounds / 5; ++round) {
            LinearServer(view(client.public_material()), 16);
        }
    });
    at_once(tasks);
}

// A layer with private weights that serves two clients, while others come, and other weights: replies and, in blocks,
// shares.
void stress_private(Packing packing) {
    const Exact exact;
    ParameterChoice chosen = packing == Packing::slots ? choice({45, 45, 45}, 50, 0.2) : choice({45, 45}, 40, 0.2);
    chosen.packing = packing;
    chosen.private_bits = 20;
    chosen.weight_norm = 4;
    const Parameters parameters(chosen);
    LinearClient one(SecretKey::generate(parameters), kFeatures, kOutputs),
        two(SecretKey::generate(parameters), kFeatures, kOutputs);
    LinearServer server(view(one.public_material()), 16);
    server.set_weight(view(exact.weight), view(exact.bias));
    const std::unique_ptr<const LinearServer> beside = server.for_client(view(two.public_material()));
    const auto serve = [&](LinearClient& client, const LinearServer& at) {
        for (int round = 0; round < kRounds; ++round) {
            std::vector<double> y(kSamples * kOutputs);
            const std::string reply = at.forward(view(client.encrypt(exact.x.data(), kSamples, false).bytes));
            client.decrypt(reader_of(reply, MessageType::reply), Purpose::local, false, y.data());
            expect(exact.right(y, chosen.error_bound), "private logits");
            if (packing == Packing::slots) {
                continue;
            }
            std::shared_ptr<const LinearServer::Share> share;
            const std::string masked = at.share(view(client.encrypt(exact.x.data(), kSamples, false).bytes), share);
            double deviation = 0;
            at.join(*share, view(client.open_share(view(masked), false, deviation)), y.data());
            expect(exact.right(y, chosen.error_bound), "shared logits");
        }
    };
    at_once({[&] { serve(one, server); }, [&] { serve(one, server); }, [&] { serve(two, *beside); },
             [&] { serve(two, *beside); },
             [&] {
                 for (int round = 0; round < kRounds; ++round) {
                     server.set_weight(view(exact.weight), view(exact.bias));
                     server.for_client(view(two.public_material()));
                 }
             }});
}

// SealedLayerClient and SealedLayerServer: one thread updates and refreshes, which have an order, while others predict
// and save. Predictions wait for it, because replies are by the weights that the server has when it makes them.
void stress_sealed() {
    const Exact exact;
    ParameterChoice chosen = choice({50}, 20, 10);
    chosen.updates = 10;
    const std::shared_ptr<const SecretKey> key = SecretKey::generate(Parameters(chosen));
    SealedLayerClient client(key, kFeatures, kOutputs, 4);
    SealedLayerServer server(view(client.seal(view(exact.weight), view(exact.bias))), 16);
    const std::vector<double> gradient = numbers(kSamples * kOutputs);
    std::atomic<bool> training{true};
    std::mutex turn;  // or readers, of which there always is one, keep the writer out
    std::shared_mutex weights;

    std::vector<std::function<void()>> tasks = times(kThreads - 1, [&] {
        while (training) {
            std::vector<double> y(kSamples * kOutputs);
            std::unique_lock<std::mutex> wait(turn);
            const std::shared_lock<std::shared_mutex> same(weights);
            wait.unlock();
            const std::string request = client.encrypt(view(exact.x)), reply = server.forward(view(request));
            expect(server.cost(view(request)).request_bytes == request.size(), "cost");
            expect(client.samples_of(reader_of(reply, MessageType::sealed_reply)) == kSamples, "samples");
            client.decrypt(reader_of(reply, MessageType::sealed_reply), y.data());
            expect(exact.right(y, 10), "logits");
        }
    });
    tasks.emplace_back([&] {
        while (training) {
            const SealedLayerServer loaded(view(server.saved()), 16);
            expect(loaded.outputs() == kOutputs, "what was saved");
        }
    });
    tasks.emplace_back([&] {
        const struct Ended {
            std::atomic<bool>& training;
            ~Ended() { training = false; }
        } ended{training};
        for (int round = 0; round < 4 * kRounds; ++round) {
            const std::lock_guard<std::mutex> wait(turn);
            const std::lock_guard<std::shared_mutex> others(weights);
            if (round % 16 == 15) {
                server.refresh(view(client.seal(view(exact.weight), view(exact.bias))));
            }
            const std::string update = client.update(view(gradient), view(exact.weight), view(exact.bias));
            std::vector<double> dx(kSamples * kFeatures);
            client.decrypt_input_gradient(reader_of(server.update(view(update)), MessageType::sealed_reply), dx.data());
        }
    });
    at_once(tasks);

    const std::function<void()> predict = [&] {
        std::vector<double> y(kSamples * kOutputs);
        const std::string reply = server.forward(view(client.encrypt(view(exact.x))));
        client.decrypt(reader_of(reply, MessageType::sealed_reply), y.data());
    };
    const std::function<void()> update = [&] { client.update(view(gradient), view(exact.weight), view(exact.bias)); };
    destroy_amid({predict, predict, predict, update}, 5, [&] { client.destroy(); });
}

// A key's releases, counted in every thread by the key as it was read from bytes.
void stress_releases() {
    ParameterChoice chosen = choice({40, 40}, 30, 0.1);
    chosen.releases = 100 * kRounds;
    const SecretBuffer<std::uint8_t> bytes = SecretKey::generate(Parameters(chosen))->bytes();
    std::atomic<std::uint32_t> counted{0};
    at_once(times(kThreads, [&] {
        try {
            for (;;) {
                const std::shared_ptr<const SecretKey> key = SecretKey::parse({bytes.data(), bytes.size()});
                key->count_release();
                ++counted;
                key->released_before(counted);
            }
        } catch (const ParameterError&) {
        }
    }));
    expect(counted == chosen.releases, "the number of releases");
}

// One client and one server of weights that do not change, while other weights' hints come and go.
void stress_frozen() {
    constexpr std::size_t rows = 130, features = 40, outputs = 20;
    const std::shared_ptr<const FrozenAgreement> agreement = FrozenAgreement::of(features, Precision::single, "");
    std::vector<double> weight(features * outputs), x(rows * features);
    for (std::size_t i = 0; i < weight.size(); ++i) {
        weight[i] = static_cast<double>(i * 5 % 13) - 6;
    }
    for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = static_cast<double>(i * 7 % 17) / 8 - 1;
    }
    const FrozenServer server(agreement, view(weight), outputs);
    FrozenClient client(agreement, outputs, false);
    client.load_hint(view(server.hint()));
    at_once(times(kThreads, [&] {
        for (int round = 0; round < kRounds / 4; ++round) {
            FrozenSecret secret;
            std::vector<double> y(rows * outputs);
            client.decrypt(view(server.multiply(view(client.encrypt(x.data(), rows, secret)))), secret, y.data());
            double expected = 0;
            for (std::size_t f = 0; f < features; ++f) {
                expected += x[f] * weight[f];
            }
            expect(std::abs(y[0] - expected) < 1e-3, "a product with frozen weights");
            client.load_hint(view(server.hint()));
            FrozenAgreement::of(features + 1, Precision::half, "");
        }
    }));
}

void run(const char* name, const std::function<void()>& stress) {
    std::printf("%s\n", name);
    std::fflush(stdout);
    stress();
}

}  // namespace

int main() {
    try {
        run("pool", &stress_pool);
        run("releases of a key", &stress_releases);
        run("frozen weights", &stress_frozen);
        for (const bool ahead : {false, true}) {
            set_work_ahead(ahead);
            set_num_threads(2);
            std::printf("work ahead %s\n", ahead ? "on" : "off");
            run("key, destroyed while it is used", &stress_key);
            run("destroyed, blocks", [] { stress_destroy(Packing::blocks, false); });
            run("destroyed, blocks, a fresh key for every request", [] { stress_destroy(Packing::blocks, true); });
            run("destroyed, slots", [] { stress_destroy(Packing::slots, false); });
            run("linear, blocks", [] { stress_linear(Packing::blocks, false); });
            run("linear, blocks, a fresh key for every request", [] { stress_linear(Packing::blocks, true); });
            run("linear, merged", [] { stress_linear(Packing::merged, false); });
            run("linear, slots", [] { stress_linear(Packing::slots, false); });
            run("linear, private weights", [] { stress_private(Packing::blocks); });
            run("linear, private weights on slots", [] { stress_private(Packing::slots); });
            run("sealed", [] {
                for (int round = 0; round < kRounds / 10; ++round) {
                    stress_sealed();
                }
            });
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    std::puts("all right");
    return 0;
}
