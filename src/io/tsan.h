/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_IO_TSAN_H
#define REWIND_IO_TSAN_H

/*
 * ThreadSanitizer does not see that a request goes through the kernel's ring
 * and comes back, and takes what happens on either side for a race. These two
 * say so; they are nothing in any other build.
 */
#if defined(__SANITIZE_THREAD__)
#define IO_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define IO_TSAN 1
#endif
#endif

#ifdef IO_TSAN
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
#define io_tsan_acquire(p) __tsan_acquire(p)
#define io_tsan_release(p) __tsan_release(p)
#else
#define io_tsan_acquire(p) ((void)(p))
#define io_tsan_release(p) ((void)(p))
#endif

#endif
