// Memory: a view (pointer + size), cache-line aligned buffers, and buffers that are zeroed when freed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

namespace hesplit {

// A non-owning run of elements; the std::span of C++17.
template <class T>
struct View {
    T* data = nullptr;
    std::size_t size = 0;

    T* begin() const { return data; }
    T* end() const { return data + size; }
    T& operator[](std::size_t i) const { return data[i]; }
};

// Pointers to `count` runs that are `step` elements apart.
template <class T>
std::vector<const T*> pointers(const T* first, std::size_t count, std::size_t step) {
    std::vector<const T*> list(count);
    for (std::size_t i = 0; i < count; ++i) {
        list[i] = first + i * step;
    }
    return list;
}

// Overwrites memory in a way that the compiler does not remove.
void secure_zero(void* memory, std::size_t size) noexcept;

inline constexpr std::size_t kAlignment = 64;

// Memory aligned to a cache line; above some megabytes to huge pages, which the system is asked for: page faults and
// address translation otherwise take a good part of large matrix products. Throws std::bad_alloc.
void* allocate_aligned(std::size_t bytes);
void free_aligned(void* memory, std::size_t bytes) noexcept;

// Whole pages of their own, which are neither swapped to disk nor written into a core dump, as far as the system allows
// that: where it does not (a small RLIMIT_MEMLOCK, say) they are ordinary memory. Of freed ones, zeroed before, a few
// are kept for the next key. Throws std::bad_alloc.
void* allocate_pages(std::size_t bytes);
void free_pages(void* memory, std::size_t bytes) noexcept;

// What is in a buffer: anything; a secret, zeroed when freed; a secret that stays, which gets pages of its own.
enum class Content { any, secret, key };

template <class T, Content content>
struct AlignedAllocator {
    using value_type = T;

    AlignedAllocator() = default;
    template <class U>
    AlignedAllocator(const AlignedAllocator<U, content>&) noexcept {}
    template <class U>
    struct rebind {
        using other = AlignedAllocator<U, content>;
    };

    T* allocate(std::size_t count) {
        if constexpr (content == Content::key) {
            return static_cast<T*>(allocate_pages(count * sizeof(T)));
        } else {
            return static_cast<T*>(allocate_aligned(count * sizeof(T)));
        }
    }
    void deallocate(T* memory, std::size_t count) noexcept {
        if constexpr (content != Content::any) {
            secure_zero(memory, count * sizeof(T));
        }
        if constexpr (content == Content::key) {
            free_pages(memory, count * sizeof(T));
        } else {
            free_aligned(memory, count * sizeof(T));
        }
    }
    // Elements that are not given a value stay as the memory was: most buffers are written in full anyway.
    template <class U>
    void construct(U* at) noexcept {
        ::new (static_cast<void*>(at)) U;
    }
    template <class U, class... Values>
    void construct(U* at, Values&&... values) {
        ::new (static_cast<void*>(at)) U(std::forward<Values>(values)...);
    }
    bool operator==(const AlignedAllocator&) const { return true; }
    bool operator!=(const AlignedAllocator&) const { return false; }
};

// Not initialised unless a value is given.
template <class T>
using Buffer = std::vector<T, AlignedAllocator<T, Content::any>>;

// The same, zeroed when freed: noise, messages, and what is derived from keys for a moment.
template <class T>
using SecretBuffer = std::vector<T, AlignedAllocator<T, Content::secret>>;

// Secret keys, in every form in which they stay.
template <class T>
using KeyBuffer = std::vector<T, AlignedAllocator<T, Content::key>>;

}  // namespace hesplit
