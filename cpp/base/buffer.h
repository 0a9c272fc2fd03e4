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

template <class T, bool Secret>
struct AlignedAllocator {
    using value_type = T;

    AlignedAllocator() = default;
    template <class U>
    AlignedAllocator(const AlignedAllocator<U, Secret>&) noexcept {}
    template <class U>
    struct rebind {
        using other = AlignedAllocator<U, Secret>;
    };

    T* allocate(std::size_t count) { return static_cast<T*>(allocate_aligned(count * sizeof(T))); }
    void deallocate(T* memory, std::size_t count) noexcept {
        if constexpr (Secret) {
            secure_zero(memory, count * sizeof(T));
        }
        free_aligned(memory, count * sizeof(T));
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
using Buffer = std::vector<T, AlignedAllocator<T, false>>;

// The same, zeroed when freed: secret keys, noise, and what is derived from them.
template <class T>
using SecretBuffer = std::vector<T, AlignedAllocator<T, true>>;

}  // namespace hesplit
