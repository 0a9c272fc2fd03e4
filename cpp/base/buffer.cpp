#include "base/buffer.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstring>
#include <mutex>

namespace hesplit {

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20, kLarge = 2 * kHugePage;
constexpr std::size_t kKept = std::size_t{256} << 10;

// Freed blocks of at least kKept bytes, kept for the next one of the same size: batches of one shape ask for the same
// ones again and again, and the system would have to zero their pages anew each time. Never waits for its lock, which a
// fork may have caught.
class Recycled {
  public:
    void* take(std::size_t bytes) {
        const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
        if (!lock) {
            return nullptr;
        }
        const auto found =
            std::find_if(blocks_.begin(), blocks_.end(), [bytes](const Block& block) { return block.bytes == bytes; });
        if (found == blocks_.end()) {
            return nullptr;
        }
        void* memory = found->memory;
        total_ -= bytes;
        blocks_.erase(found);
        return memory;
    }

    bool keep(void* memory, std::size_t bytes) noexcept {
        constexpr std::size_t kMaxTotal = std::size_t{64} << 20;
        const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
        if (!lock || total_ + bytes > kMaxTotal || blocks_.size() == blocks_.capacity()) {
            return false;
        }
        blocks_.push_back({memory, bytes});
        total_ += bytes;
        return true;
    }

    static Recycled& get() {
        static Recycled* const recycled = new Recycled;  // buffers may be freed until the process ends
        return *recycled;
    }

  private:
    struct Block {
        void* memory;
        std::size_t bytes;
    };

    Recycled() { blocks_.reserve(64); }

    std::mutex mutex_;
    std::vector<Block> blocks_;
    std::size_t total_ = 0;
};

std::align_val_t alignment(std::size_t bytes) {
    return std::align_val_t{bytes < kLarge ? kAlignment : kHugePage};
}

}  // namespace

void* allocate_aligned(std::size_t bytes) {
    if (bytes >= kKept) {
        if (void* memory = Recycled::get().take(bytes)) {
            return memory;
        }
    }
    void* memory = ::operator new(bytes, alignment(bytes));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= kLarge) {
        madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // a wish: systems may refuse
    }
#endif
    return memory;
}

void free_aligned(void* memory, std::size_t bytes) noexcept {
    if (bytes < kKept || !Recycled::get().keep(memory, bytes)) {
        ::operator delete(memory, alignment(bytes));
    }
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
