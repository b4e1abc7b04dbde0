/* Threads that work without the interpreter's lock; the calling thread waits, reports progress and cleans up. */
#include "core.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define REPORT_NANOSECONDS 150000000L

void crew_init(struct crew *crew)
{
    pthread_mutex_init(&crew->lock, NULL);
    pthread_cond_init(&crew->change, NULL);
    pthread_cond_init(&crew->finished, NULL);
}

void crew_destroy(struct crew *crew)
{
    pthread_cond_destroy(&crew->finished);
    pthread_cond_destroy(&crew->change);
    pthread_mutex_destroy(&crew->lock);
}

void *crew_leave(struct crew *crew)
{
    pthread_mutex_lock(&crew->lock);
    if (--crew->running == 0)
        pthread_cond_signal(&crew->finished);
    pthread_mutex_unlock(&crew->lock);
    return NULL;
}

void crew_start(struct crew *crew, uint64_t n, void *(*run)(void *crew))
{
    /* Signals go to the calling thread, where Python handles them, but a fault's signal to the thread that caused it.
     */
    sigset_t most, before;
    sigfillset(&most);
    sigdelset(&most, SIGBUS);
    sigdelset(&most, SIGSEGV);
    sigdelset(&most, SIGFPE);
    sigdelset(&most, SIGILL);
    pthread_sigmask(SIG_SETMASK, &most, &before);
    for (uint64_t i = 0; i < n; i++) {
        pthread_mutex_lock(&crew->lock);
        crew->running++;
        pthread_mutex_unlock(&crew->lock);
        int error = pthread_create(&crew->threads[crew->count], NULL, run, crew);
        if (error != 0) {
            crew_leave(crew);
            crew_fail(crew, error, "cannot start a thread: %s", strerror(error));
            break;
        }
        crew->count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void stop(struct crew *crew)
{
    pthread_mutex_lock(&crew->lock);
    crew->stop = true;
    pthread_cond_broadcast(&crew->change);
    pthread_mutex_unlock(&crew->lock);
}

bool crew_fail(struct crew *crew, int error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    pthread_mutex_lock(&crew->lock);
    if (!crew->failed) {
        crew->failed = true;
        crew->error = error;
        vsnprintf(crew->text, sizeof crew->text, format, arguments);
    }
    pthread_mutex_unlock(&crew->lock);
    va_end(arguments);
    stop(crew);
    return false;
}

int crew_raise(const struct crew *crew)
{
    if (crew->error == 0) {
        PyErr_SetString(core_damaged, crew->text);
        return -1;
    }
    PyObject *arguments = Py_BuildValue("(is)", crew->error, crew->text);
    if (arguments != NULL)
        PyErr_SetObject(PyExc_OSError, arguments);
    Py_XDECREF(arguments);
    return -1;
}

/* Wait until all workers have ended (true), or it is time to report progress (false). */
static bool wait_a_moment(struct crew *crew)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += REPORT_NANOSECONDS;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    int error = 0;
    pthread_mutex_lock(&crew->lock);
    while (crew->running > 0 && error == 0)
        error = pthread_cond_clockwait(&crew->finished, &crew->lock, CLOCK_MONOTONIC, &until);
    bool over = crew->running == 0;
    pthread_mutex_unlock(&crew->lock);
    return over;
}

/* Call the progress callback; -1 with an exception when it raised one or returned False. */
static int report(struct crew *crew, PyObject *progress)
{
    if (progress == Py_None)
        return 0;
    pthread_mutex_lock(&crew->lock);
    unsigned long long done = crew->done, total = crew->total, moved = crew->moved;
    pthread_mutex_unlock(&crew->lock);
    PyObject *answer = PyObject_CallFunction(progress, "KKK", done, total, moved);
    if (answer == Py_False)
        PyErr_SetString(core_cancelled, "stopped before it was done, as asked");
    bool go_on = answer != NULL && answer != Py_False;
    Py_XDECREF(answer);
    return go_on ? 0 : -1;
}

int crew_wait(struct crew *crew, PyObject *progress)
{
    int result = 0;
    for (bool over = false; !over;) {
        Py_BEGIN_ALLOW_THREADS;
        over = wait_a_moment(crew);
        Py_END_ALLOW_THREADS;
        if (!over && result == 0 && (PyErr_CheckSignals() != 0 || report(crew, progress) != 0)) {
            result = -1;
            stop(crew);
        }
    }
    for (int i = 0; i < crew->count; i++)
        pthread_join(crew->threads[i], NULL);
    if (result == 0)
        result = crew->failed ? crew_raise(crew) : report(crew, progress);
    return result;
}
