/* The sign of life of a process: a thread that sends an empty frame at intervals, without Python's interpreter lock.
 *
 * A frame is a little-endian 32-bit length and so many bytes. Whoever else has something to say on the connection says it
 * through eg_pulse_say, so that no beat gets into the middle of it.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#include "eagle.h"

#if !defined(MSG_NOSIGNAL)
#define MSG_NOSIGNAL 0
#endif

#if defined(__linux__)
#define PULSE_CLOCK CLOCK_MONOTONIC /* a clock that is set must not stop the beats */
#else
#define PULSE_CLOCK CLOCK_REALTIME /* the only one that pthread_cond_timedwait knows there */
#endif

struct eg_pulse {
  int fd;
  int is_stopping;
  int64_t interval_ns;
  pthread_t thread;
  pthread_mutex_t mutex; /* held while a frame is sent, and around is_stopping */
  pthread_cond_t stopped;
};

/* Whether all of it was sent. The caller holds the mutex. */
static int send_whole(eg_pulse *pulse, const char *data, size_t size) {
  while (size > 0) {
    ssize_t sent = send(pulse->fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return 0;
    data += sent;
    size -= (size_t)sent;
  }
  return 1;
}

static int send_frame(eg_pulse *pulse, const void *data, uint32_t size) {
  unsigned char length[4] = {(unsigned char)size, (unsigned char)(size >> 8), (unsigned char)(size >> 16),
                             (unsigned char)(size >> 24)};
  return send_whole(pulse, (const char *)length, sizeof length) && send_whole(pulse, data, size);
}

static void *beat(void *argument) {
  eg_pulse *pulse = argument;
  pthread_mutex_lock(&pulse->mutex);
  while (!pulse->is_stopping && send_frame(pulse, NULL, 0)) {
    struct timespec next;
    clock_gettime(PULSE_CLOCK, &next);
    int64_t nanoseconds = next.tv_nsec + pulse->interval_ns;
    next.tv_sec += (time_t)(nanoseconds / 1000000000);
    next.tv_nsec = (long)(nanoseconds % 1000000000);
    pthread_cond_timedwait(&pulse->stopped, &pulse->mutex, &next);
  }
  pthread_mutex_unlock(&pulse->mutex);
  return NULL;
}

int eg_pulse_start(int fd, double interval_s, eg_pulse **started) {
  eg_pulse *pulse = calloc(1, sizeof *pulse);
  if (pulse == NULL) return ENOMEM;
  pulse->fd = fd;
  pulse->interval_ns = (int64_t)(interval_s * 1e9);
  pthread_mutex_init(&pulse->mutex, NULL);
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
#if defined(__linux__)
  pthread_condattr_setclock(&attributes, PULSE_CLOCK);
#endif
  pthread_cond_init(&pulse->stopped, &attributes);
  pthread_condattr_destroy(&attributes);
  sigset_t all, former;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &former); /* inherited by the thread: signals are for the others */
  int error = pthread_create(&pulse->thread, NULL, beat, pulse);
  pthread_sigmask(SIG_SETMASK, &former, NULL);
  if (error != 0) {
    free(pulse);
    return error;
  }
  *started = pulse;
  return 0;
}

int eg_pulse_say(eg_pulse *pulse, const void *data, uint32_t size) {
  pthread_mutex_lock(&pulse->mutex);
  int is_sent = send_frame(pulse, data, size);
  pthread_mutex_unlock(&pulse->mutex);
  return is_sent;
}

void eg_pulse_stop(eg_pulse *pulse) {
  pthread_mutex_lock(&pulse->mutex);
  pulse->is_stopping = 1;
  pthread_cond_signal(&pulse->stopped);
  pthread_mutex_unlock(&pulse->mutex);
  pthread_join(pulse->thread, NULL);
  pthread_cond_destroy(&pulse->stopped);
  pthread_mutex_destroy(&pulse->mutex);
  free(pulse);
}
