/*
 * Copies between memory that the driver does not know and the device. The driver's own go through a pinned buffer of
 * its on one thread, at the speed of memcpy; here several threads each have such buffers and a stream.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#pragma once
#include "support.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ane {

/* The part of a span of memory that belongs to a matrix: in each item, rows of `row_bytes`. */
struct Rows {
    uint64_t items, item_bytes, rows, pitch_bytes, row_bytes;

    bool has_gaps() const {
        return (rows > 1 && pitch_bytes != row_bytes) || (items > 1 && item_bytes != rows * row_bytes);
    }
};

/* Copies what lies from `first` to `last` of the span, and belongs to the matrix. `from` has the span from `first` on.
 */
inline void copy_rows(char *to, const char *from, uint64_t first, uint64_t last, const Rows &matrix) {
    if (!matrix.has_gaps()) {
        memcpy(to + first, from, last - first);
        return;
    }
    for (uint64_t item = 0; item < matrix.items; item++) {
        uint64_t start = item * matrix.item_bytes;
        uint64_t row = first <= start || matrix.pitch_bytes == 0 ? 0 : (first - start) / matrix.pitch_bytes;
        for (; row < matrix.rows; row++) {
            uint64_t begin = start + row * matrix.pitch_bytes, end = begin + matrix.row_bytes;
            if (begin >= last) break;
            begin = std::max(begin, first);
            end = std::min(end, last);
            if (begin < end) memcpy(to + begin, from + (begin - first), end - begin);
        }
    }
}

/* Threads that work on one job at a time, with whoever gives it to them. */
class Crew {
  public:
    explicit Crew(unsigned helpers) {
        try {
            for (unsigned i = 0; i < helpers; i++) threads_.emplace_back([this, i] { help(i + 1); });
        } catch (...) {
            end();
            throw;
        }
    }
    ~Crew() { end(); }

    unsigned size() const { return static_cast<unsigned>(threads_.size()) + 1; }

    /* Calls `job` with each number from 0 to size() - 1, on a thread each, or with 0 alone, and returns when all are
     * done. It throws nothing. */
    void run(const std::function<void(unsigned)> &job, bool alone) {
        if (alone || threads_.empty()) {
            job(0);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(lock_);
            job_ = &job;
            busy_ = threads_.size();
            number_++;
        }
        given_.notify_all();
        job(0);
        std::unique_lock<std::mutex> lock(lock_);
        done_.wait(lock, [this] { return busy_ == 0; });
    }

  private:
    void help(unsigned index) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(lock_);
        for (;;) {
            given_.wait(lock, [&] { return ending_ || number_ != seen; });
            if (ending_) return;
            seen = number_;
            const auto *job = job_;
            lock.unlock();
            (*job)(index);
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    void end() {
        {
            std::lock_guard<std::mutex> lock(lock_);
            ending_ = true;
        }
        given_.notify_all();
        for (std::thread &thread : threads_) thread.join();
    }

    std::mutex lock_;
    std::condition_variable given_, done_;
    const std::function<void(unsigned)> *job_ = nullptr;
    uint64_t number_ = 0;
    size_t busy_ = 0;
    bool ending_ = false;
    std::vector<std::thread> threads_;
};

/* One transfer at a time: they share the bus. */
class Transfer {
  public:
    Transfer(int device, unsigned threads) : device_(device), crew_(threads - 1) {
        for (unsigned i = 0; i < crew_.size(); i++) {
            Lane lane;
            lane.stream = new_stream();
            lane.memory = pinned_memory(2 * CHUNK);
            for (Event &event : lane.copied) event = new_event(cudaEventDisableTiming);
            lanes_.push_back(std::move(lane));
        }
        ready_ = new_event(cudaEventDisableTiming);
    }

    /* Copies to the device, after what `stream` has before it, and before what it gets next. */
    void upload(void *to, const void *from, uint64_t bytes, cudaStream_t stream) {
        std::lock_guard<std::mutex> lock(lock_);
        check(cudaEventRecord(ready_.get(), stream), "starting a copy to the device");
        across(bytes, [&](Lane &lane, uint64_t first, uint64_t last, unsigned half) {
            check(cudaEventSynchronize(lane.copied[half].get()), "copying to the device");
            char *staged = lane.half(half);
            memcpy(staged, static_cast<const char *>(from) + first, last - first);
            cudaStream_t own = lane.stream.get();
            check(cudaMemcpyAsync(static_cast<char *>(to) + first, staged, last - first, cudaMemcpyHostToDevice, own),
                  "copying to the device");
            check(cudaEventRecord(lane.copied[half].get(), own), "copying to the device");
        });
        for (Lane &lane : lanes_) {
            for (Event &event : lane.copied) {
                check(cudaStreamWaitEvent(stream, event.get(), 0), "copying to the device");
            }
        }
    }

    /* Copies the rows of a matrix to the host, after what `stream` has before it. Complete when it returns. */
    void download(void *to, const void *from, uint64_t bytes, const Rows &rows, cudaStream_t stream) {
        std::lock_guard<std::mutex> lock(lock_);
        check(cudaEventRecord(ready_.get(), stream), "starting a copy from the device");
        auto land = [&](Lane &lane, unsigned half) {
            Chunk chunk = std::exchange(lane.chunk[half], Chunk());
            if (chunk.last == 0) return;
            check(cudaEventSynchronize(lane.copied[half].get()), "copying from the device");
            copy_rows(static_cast<char *>(to), lane.half(half), chunk.first, chunk.last, rows);
        };
        for (Lane &lane : lanes_) lane.chunk[0] = lane.chunk[1] = Chunk();
        across(
            bytes,
            [&](Lane &lane, uint64_t first, uint64_t last, unsigned half) {
                cudaStream_t own = lane.stream.get();
                check(cudaMemcpyAsync(lane.half(half), static_cast<const char *>(from) + first, last - first,
                                      cudaMemcpyDeviceToHost, own),
                      "copying from the device");
                check(cudaEventRecord(lane.copied[half].get(), own), "copying from the device");
                lane.chunk[half] = Chunk{first, last};
                land(lane, 1 - half);
            },
            [&](Lane &lane) {
                land(lane, 0);
                land(lane, 1);
            });
    }

  private:
    static constexpr uint64_t CHUNK = 256 << 10;

    struct Chunk {
        uint64_t first = 0, last = 0;
    };
    /* What one thread has: a stream, and two halves of pinned memory, of which one is filled while the other is copied.
     */
    struct Lane {
        Stream stream;
        PinnedMemory memory;
        Event copied[2];
        Chunk chunk[2];

        char *half(unsigned i) const { return static_cast<char *>(memory.get()) + i * CHUNK; }
    };

    /* Each thread takes one chunk after another, in its halves in turn, once the event `ready_` has come. */
    template <typename Body, typename End> void across(uint64_t bytes, Body body, End end) {
        std::atomic<uint64_t> next{0};
        std::vector<std::exception_ptr> failures(lanes_.size());
        crew_.run(
            [&](unsigned index) {
                Lane &lane = lanes_[index];
                try {
                    check(cudaSetDevice(device_), "choosing the device");
                    check(cudaStreamWaitEvent(lane.stream.get(), ready_.get(), 0), "copying");
                    unsigned half = 0;
                    for (uint64_t first; (first = next.fetch_add(CHUNK)) < bytes; half = 1 - half) {
                        body(lane, first, std::min(first + CHUNK, bytes), half);
                    }
                    end(lane);
                } catch (...) {
                    failures[index] = std::current_exception();
                }
            },
            bytes <= CHUNK);
        for (const std::exception_ptr &failure : failures) {
            if (!failure) continue;
            /* Nothing works on the caller's memory any more. */
            for (Lane &lane : lanes_) cudaStreamSynchronize(lane.stream.get());
            std::rethrow_exception(failure);
        }
    }
    template <typename Body> void across(uint64_t bytes, Body body) {
        across(bytes, body, [](Lane &) {});
    }

    int device_;
    std::mutex lock_;
    std::vector<Lane> lanes_;
    Event ready_;
    Crew crew_; /* ends first */
};

} /* namespace ane */
