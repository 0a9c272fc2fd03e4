// What a client of either kind keeps from a request until its reply: its keys, encryptions of zero made ahead, and
// which requests are outstanding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "base/ahead.h"
#include "base/buffer.h"
#include "linear/messages.h"
#include "ring/ring.h"
#include "rlwe/decryption.h"
#include "rlwe/encryption.h"
#include "rlwe/secret_key.h"

namespace hesplit {

// A secret key made ready for one ring.
struct ClientKey {
    // For encryptions of zero in this form.
    ClientKey(std::shared_ptr<const SecretKey> key, const Ring& ring, const Ring& auxiliary, ZeroForm form);

    // Decrypts one ciphertext of a reply: c0 at `positions`, then c1 whole. `added`, unless it is empty, is added to
    // c0. Throws WireError.
    SecretBuffer<std::int64_t> open(const std::uint8_t* run, const std::vector<std::uint32_t>& positions, int bits,
                                    View<const std::uint64_t> added = {}) const;

    std::shared_ptr<const SecretKey> key;
    KeyBuffer<std::uint64_t> secret;  // in NTT form, as encryptions of zero take it
    PhaseDecryptor phase;
};

// Which reply a request waits for.
enum class Awaited { logits, weight_gradient, input_gradient };

// Sealed layers: what the client adds to a reply itself.
struct SealedShare {
    Id weights{};                       // the reply must have been made with these
    SecretBuffer<std::uint64_t> phase;  // at the positions of every ciphertext in turn, modulo 2^bits
    SecretBuffer<double> values;        // to the decrypted values, row-major
};

struct Outstanding {
    Awaited awaited = Awaited::logits;
    BatchShape shape;
    std::shared_ptr<ClientKey> key;
    // Of the reply, where it does not carry them itself (sealed layers).
    int bits = 0;
    double scale = 0;
    std::shared_ptr<const SealedShare> share = nullptr;
};

// Encryptions of zero for the ciphertexts of one message, and the key that they are under.
struct Encryptions {
    std::shared_ptr<ClientKey> key;
    ZeroEncryptions zeros;
};

// Safe to use from several threads.
class ClientSession {
  public:
    // `ring` outlives the session. `fresh_keys`: every message under a key of its own, `key` then only names the
    // parameters.
    ClientSession(std::shared_ptr<const SecretKey> key, const Ring& ring, bool fresh_keys, ZeroForm form);

    // The client's key. Throws KeyMismatchError once it is destroyed, as every function below that needs a key.
    std::shared_ptr<ClientKey> key() const;

    // Encryptions of zero for a message of `count` ciphertexts: made ahead if there are such, else now. Never handed
    // out twice.
    Encryptions encryptions(std::size_t count);
    // Begins to make those of the next messages, of so many ciphertexts each, if that pays. Returns the public seed of
    // the first, which may be announced; zeros if none is made.
    Seed prepare(const std::vector<std::size_t>& counts);

    // A request was made. Of too many outstanding ones the oldest is forgotten.
    void remember(const Id& message, Outstanding request);
    // How many samples the request has that a reply answers. Throws KeyMismatchError.
    std::size_t samples_of(const Header& reply) const;

    // A reply that is being opened. Nobody else can open one to the same request meanwhile; if it turns out not to be
    // genuine, the request stays outstanding and another reply may come.
    class Answer {
      public:
        Answer(ClientSession& session, const Id& message, Outstanding request)
            : session_(session), message_(message), request_(std::move(request)) {}
        ~Answer();
        Answer(const Answer&) = delete;
        Answer& operator=(const Answer&) = delete;

        const Outstanding& request() const { return request_; }
        // The request is answered; or, in the second form, one more reply to it follows.
        void done();
        void done(Awaited next);

      private:
        ClientSession& session_;
        Id message_;
        Outstanding request_;
        bool done_ = false;
    };
    // Throws KeyMismatchError for a reply to no outstanding request, or under another key than the request; where a
    // weight gradient comes before its logits were decrypted, WireError.
    Answer answer(const Header& reply, Awaited awaited);

    // Zeroes every key. Calls that have begun finish with what they hold.
    void destroy();

  private:
    struct Entry {
        Outstanding request;
        std::uint64_t number = 0;  // in the order of requests
        bool being_answered = false;
    };
    void require_alive() const;
    const Entry& find(const Header& reply) const;
    void erase(const Id& message);
    std::shared_ptr<Encryptions> begin() const;
    void complete(Encryptions& encryptions, std::size_t count) const;

    Parameters parameters_;
    const Ring& ring_;
    Ring auxiliary_;
    bool fresh_keys_;
    ZeroForm form_;

    mutable std::mutex mutex_;
    std::shared_ptr<ClientKey> key_;  // null once destroyed
    std::map<Id, Entry> outstanding_;
    std::map<std::uint64_t, Id> by_age_;
    std::uint64_t requests_ = 0;

    // Guarded by ahead_mutex_, which is locked before mutex_; the job completes what prepared_ points to. Last, so that
    // a job ends before the rest.
    std::mutex ahead_mutex_;
    std::vector<std::shared_ptr<Encryptions>> prepared_;
    Ahead ahead_;
};

}  // namespace hesplit
