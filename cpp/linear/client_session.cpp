#include "linear/client_session.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "wire/codec.h"

namespace hesplit {

namespace {

// Requests whose replies have not come.
constexpr std::size_t kMaxOutstanding = 4096;

constexpr const char* kUnknownRequest =
    "a reply to a request that this client did not make, or that was answered already";

}  // namespace

ClientKey::ClientKey(std::shared_ptr<const SecretKey> secret_key, const Ring& ring, const Ring& auxiliary,
                     ZeroForm form)
    : key(std::move(secret_key)),
      secret(form == ZeroForm::integers ? secret_for_composition(*key, ring) : secret_in_ring(*key, ring)),
      phase(*key, auxiliary) {}

SecretBuffer<std::int64_t> ClientKey::open(const std::uint8_t* run, const std::vector<std::uint32_t>& positions,
                                           int bits, View<const std::uint64_t> added) const {
    const std::size_t n = key->parameters().ring_degree();
    const std::uint64_t limit = std::uint64_t{1} << bits;
    const View<const std::uint32_t> at{positions.data(), positions.size()};
    SecretBuffer<std::uint64_t> c0(at.size);
    Buffer<std::uint64_t> c1(n);
    unpack_bits(run, {c0.data(), c0.size()}, bits, limit);
    unpack_bits(run + packed_bytes(c0.size(), bits), {c1.data(), n}, bits, limit);
    for (std::size_t i = 0; i < added.size; ++i) {
        c0[i] += added[i];  // modulo 2^bits below
    }
    SecretBuffer<std::int64_t> values(at.size);
    phase.phase({c1.data(), n}, {c0.data(), c0.size()}, at, bits, values.data());
    return values;
}

ClientSession::ClientSession(std::shared_ptr<const SecretKey> key, const Ring& ring, bool fresh_keys, ZeroForm form)
    : parameters_(key->parameters()),
      ring_(ring),
      auxiliary_(auxiliary_ring(ring.degree())),
      fresh_keys_(fresh_keys),
      form_(form),
      key_(std::make_shared<ClientKey>(std::move(key), ring_, auxiliary_, form_)) {}

void ClientSession::require_alive() const {
    if (!key_) {
        throw KeyMismatchError("this client's key was destroyed; begin a new session with a new key");
    }
}

std::shared_ptr<ClientKey> ClientSession::key() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    require_alive();
    return key_;
}

std::shared_ptr<Encryptions> ClientSession::begin() const {
    std::shared_ptr<ClientKey> current = key();  // throws when it was destroyed
    return std::make_shared<Encryptions>(
        Encryptions{fresh_keys_ ? nullptr : std::move(current), ZeroEncryptions::begin()});
}

void ClientSession::complete(Encryptions& encryptions, std::size_t count) const {
    if (fresh_keys_) {
        encryptions.key = std::make_shared<ClientKey>(SecretKey::generate(parameters_), ring_, auxiliary_, form_);
    }
    encryptions.zeros.fill(ring_, encryptions.key->secret, count, form_);
}

Encryptions ClientSession::encryptions(std::size_t count) {
    std::shared_ptr<Encryptions> made;
    {
        const std::lock_guard<std::mutex> lock(ahead_mutex_);
        ahead_.wait();
        const auto found = std::find_if(prepared_.begin(), prepared_.end(),
                                        [&](const auto& entry) { return entry->zeros.usable(count); });
        if (found != prepared_.end()) {
            made = std::move(*found);
            prepared_.erase(found);
        }
    }
    if (!made) {
        made = begin();
        complete(*made, count);
    }
    return std::move(*made);
}

Seed ClientSession::prepare(const std::vector<std::size_t>& counts) {
    const std::lock_guard<std::mutex> lock(ahead_mutex_);
    prepared_.clear();
    if (!ahead_.pays()) {
        return {};
    }
    while (prepared_.size() < counts.size()) {
        prepared_.push_back(begin());
    }
    ahead_.start([this, counts, encryptions = prepared_] {
        for (std::size_t i = 0; i < counts.size(); ++i) {
            complete(*encryptions[i], counts[i]);
        }
    });
    return prepared_.front()->zeros.randomness.seed;
}

void ClientSession::remember(const Id& message, Outstanding request) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!key_) {
        request.key->key->destroy();  // made for this request alone, while destroy() was looking elsewhere
    }
    require_alive();
    if (outstanding_.size() >= kMaxOutstanding) {
        erase(by_age_.begin()->second);
    }
    by_age_.emplace(requests_, message);
    outstanding_.emplace(message, Entry{std::move(request), requests_});
    ++requests_;
}

void ClientSession::erase(const Id& message) {
    const auto found = outstanding_.find(message);
    if (found != outstanding_.end()) {
        by_age_.erase(found->second.number);
        outstanding_.erase(found);
    }
}

const ClientSession::Entry& ClientSession::find(const Header& reply) const {
    require_alive();
    const auto found = outstanding_.find(reply.message);
    if (found == outstanding_.end()) {
        throw KeyMismatchError(kUnknownRequest);
    }
    if (found->second.request.key->key->id() != reply.key) {
        throw KeyMismatchError("a reply made under another key");
    }
    return found->second;
}

std::size_t ClientSession::samples_of(const Header& reply) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return find(reply).request.shape.samples;
}

ClientSession::Answer ClientSession::answer(const Header& reply, Awaited awaited) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Entry& entry = find(reply);
    if (entry.being_answered) {
        throw KeyMismatchError("a reply to a request that another thread is opening a reply to");
    }
    if (entry.request.awaited != awaited) {
        if (awaited == Awaited::weight_gradient) {
            throw WireError("a weight gradient that was not asked for");
        }
        throw KeyMismatchError(kUnknownRequest);
    }
    outstanding_.at(reply.message).being_answered = true;
    return Answer(*this, reply.message, entry.request);
}

ClientSession::Answer::~Answer() {
    if (!done_) {
        const std::lock_guard<std::mutex> lock(session_.mutex_);
        const auto found = session_.outstanding_.find(message_);
        if (found != session_.outstanding_.end()) {
            found->second.being_answered = false;
        }
    }
}

void ClientSession::Answer::done() {
    const std::lock_guard<std::mutex> lock(session_.mutex_);
    done_ = true;
    session_.erase(message_);
}

void ClientSession::Answer::done(Awaited next) {
    const std::lock_guard<std::mutex> lock(session_.mutex_);
    done_ = true;
    const auto found = session_.outstanding_.find(message_);
    if (found != session_.outstanding_.end()) {
        found->second.request.awaited = next;
        found->second.being_answered = false;
    }
}

void ClientSession::destroy() {
    const std::lock_guard<std::mutex> ahead_lock(ahead_mutex_);
    ahead_.wait();
    for (const std::shared_ptr<Encryptions>& entry : prepared_) {
        if (entry->key) {
            entry->key->key->destroy();
        }
    }
    prepared_.clear();
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [message, entry] : outstanding_) {
        entry.request.key->key->destroy();
    }
    outstanding_.clear();
    by_age_.clear();
    if (key_) {
        key_->key->destroy();
        key_.reset();
    }
}

}  // namespace hesplit
