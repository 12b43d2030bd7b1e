/* Arrays whose size follows the config of a model. They lie on the stack, of which a thread may have 2 MB, as long as they are
 * small, which those of the usual sizes are. */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_ON_STACK = 1 << 18, ROOM_ALIGNMENT = 64 }; /* bytes */

/* A job has no way to say that there is no memory. */
static void *large_room(long bytes) {
    void *room = malloc(bytes + ROOM_ALIGNMENT);
    if (room) return room;
    fprintf(stderr, "dia-engine: no memory for %ld bytes that a decode step needs\n", bytes);
    abort();
}

static inline void leave_large_room(void *room) { free(*(void **)room); }

/* type name[count], up to the end of the block; name_bytes is its size. */
#define ROOM(type, name, count)                                                                                         \
    const long name##_bytes = (count) * (long)sizeof(type);                                                             \
    _Alignas(ROOM_ALIGNMENT) char name##_on_stack[name##_bytes <= MOST_ON_STACK ? name##_bytes : 1];                    \
    __attribute__((cleanup(leave_large_room))) void *name##_elsewhere =                                                 \
        name##_bytes <= MOST_ON_STACK ? NULL : large_room(name##_bytes);                                                \
    type *const name = !name##_elsewhere ? (type *)name##_on_stack                                                      \
                                         : (type *)(((uintptr_t)name##_elsewhere + ROOM_ALIGNMENT - 1) & -ROOM_ALIGNMENT)
