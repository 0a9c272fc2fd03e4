#include "base/buffer.h"

#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#elif defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <mutex>

namespace hesplit {

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20, kLarge = 2 * kHugePage;
constexpr std::size_t kKept = std::size_t{64} << 10;

std::size_t page_size() {
#if defined(_WIN32)
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
#elif defined(__unix__) || defined(__APPLE__)
    return static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
#else
    return kAlignment;
#endif
}

std::size_t whole_pages(std::size_t bytes) {
    static const std::size_t page = page_size();
    return (bytes + page - 1) / page * page;
}

// Under AddressSanitizer every block is the system's own, so that it sees what is used beyond its end or after its
// time.
#if defined(__has_feature)
#define HESPLIT_HAS_FEATURE(feature) __has_feature(feature)
#else
#define HESPLIT_HAS_FEATURE(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || HESPLIT_HAS_FEATURE(address_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

std::align_val_t alignment(std::size_t bytes) {
    return std::align_val_t{bytes < kLarge ? kAlignment : kHugePage};
}

// Aligned here and not by the allocator, whose aligned blocks fill no hole that one of them left (glibc before 2.38):
// buffers and scratch in turns then take up to twice what is in use.
void* new_block(std::size_t bytes) {
    if (kSanitized || bytes >= kLarge) {
        return ::operator new(bytes, alignment(bytes));
    }
    static_assert(kAlignment < 256, "shifts are kept in a byte");
    auto* const whole = static_cast<unsigned char*>(::operator new(bytes + kAlignment));
    const std::size_t shift = kAlignment - reinterpret_cast<std::uintptr_t>(whole) % kAlignment;
    whole[shift - 1] = static_cast<unsigned char>(shift);
    return whole + shift;
}

void release_block(void* memory, std::size_t bytes) noexcept {
    if (kSanitized || bytes >= kLarge) {
        return ::operator delete(memory, alignment(bytes));
    }
    auto* const block = static_cast<unsigned char*>(memory);
    ::operator delete(block - block[-1]);
}

// Freed blocks that are kept for the next one of the same size; the oldest make room. Never waits for its lock, which a
// fork may have caught.
class Recycled {
  public:
    using Release = void (*)(void* memory, std::size_t bytes) noexcept;

    Recycled(std::size_t most_bytes, Release release) : most_bytes_(most_bytes), release_(release) {
        blocks_.reserve(kMostBlocks);
    }

    void* take(std::size_t bytes) {
        const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
        if (!lock) {
            return nullptr;
        }
        const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(),
                                        [bytes](const Block& block) { return block.bytes == bytes; });
        if (found == blocks_.rend()) {
            return nullptr;
        }
        void* memory = found->memory;
        total_ -= bytes;
        blocks_.erase(std::next(found).base());
        return memory;
    }

    void keep(void* memory, std::size_t bytes) noexcept {
        const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
        if (kSanitized || !lock || bytes > most_bytes_) {
            return release_(memory, bytes);
        }
        std::size_t oldest = 0;
        for (; total_ + bytes > most_bytes_ || blocks_.size() - oldest == kMostBlocks; ++oldest) {
            total_ -= blocks_[oldest].bytes;
            release_(blocks_[oldest].memory, blocks_[oldest].bytes);
        }
        blocks_.erase(blocks_.begin(), blocks_.begin() + static_cast<std::ptrdiff_t>(oldest));
        blocks_.push_back({memory, bytes});
        total_ += bytes;
    }

  private:
    static constexpr std::size_t kMostBlocks = 64;

    struct Block {
        void* memory;
        std::size_t bytes;
    };

    std::size_t most_bytes_;
    Release release_;
    std::mutex mutex_;
    std::vector<Block> blocks_;  // the oldest first
    std::size_t total_ = 0;
};

// Unmapping unlocks.
void release_pages(void* memory, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(_WIN32)
    VirtualFree(memory, 0, MEM_RELEASE);
#elif defined(__unix__) || defined(__APPLE__)
    munmap(memory, bytes);
#else
    release_block(memory, bytes);
#endif
}

// Buffers may be freed until the process ends, so neither of these is.

// Blocks of at least kKept bytes: batches of one shape ask for the same ones again and again, and the system would have
// to zero their pages anew each time.
Recycled& recycled_blocks() {
    static Recycled* const recycled = new Recycled(std::size_t{64} << 20, release_block);
    return *recycled;
}

// Pages of keys: a client may take a fresh one for every request.
Recycled& recycled_pages() {
    static Recycled* const recycled = new Recycled(std::size_t{1} << 20, release_pages);
    return *recycled;
}

}  // namespace

void* allocate_aligned(std::size_t bytes) {
    if (bytes >= kKept) {
        if (void* memory = recycled_blocks().take(bytes)) {
            return memory;
        }
    }
    void* memory = new_block(bytes);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= kLarge) {
        madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // a wish: systems may refuse
    }
#endif
    return memory;
}

void free_aligned(void* memory, std::size_t bytes) noexcept {
    if (bytes < kKept) {
        release_block(memory, bytes);
    } else {
        recycled_blocks().keep(memory, bytes);
    }
}

void* allocate_pages(std::size_t bytes) {
    bytes = whole_pages(bytes);
    if (void* memory = recycled_pages().take(bytes)) {
        return memory;
    }
    // What follows the allocation itself is a wish: systems may refuse.
#if defined(_WIN32)
    void* memory = VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
    VirtualLock(memory, bytes);
    return memory;
#elif defined(__unix__) || defined(__APPLE__)
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (memory == MAP_FAILED) {
        throw std::bad_alloc();
    }
    mlock(memory, bytes);
#if defined(MADV_DONTDUMP)
    madvise(memory, bytes, MADV_DONTDUMP);
#elif defined(MADV_NOCORE)
    madvise(memory, bytes, MADV_NOCORE);
#endif
    return memory;
#else
    return new_block(bytes);
#endif
}

void free_pages(void* memory, std::size_t bytes) noexcept {
    recycled_pages().keep(memory, whole_pages(bytes));
}

void secure_zero(void* memory, std::size_t size) noexcept {
    std::memset(memory, 0, size);
#if defined(__GNUC__) || defined(__clang__)
    // The barrier makes the compiler believe that the zeros are read.
    __asm__ __volatile__("" : : "r"(memory) : "memory");
#else
    volatile unsigned char* bytes = static_cast<unsigned char*>(memory);
    for (std::size_t i = 0; i < size; ++i) {
        bytes[i] = 0;
    }
#endif
}

}  // namespace hesplit
