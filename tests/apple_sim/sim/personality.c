/*
 * personality.c - `@catch (...)` catches what is not Objective-C's, as in Apple's runtime, whose personality
 * routine leaves such exceptions to that of C++ (objc4, runtime/objc-exception.mm). GNU's lets them pass. Exceptions
 * of Objective-C go on to GNU's. The tables are those of the Itanium C++ ABI, "Exception Handling Tables".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>
#include <unwind.h>

typedef _Unwind_Reason_Code Personality(int version, _Unwind_Action actions, _Unwind_Exception_Class class,
                                        struct _Unwind_Exception *exception, struct _Unwind_Context *context);

Personality __gnu_objc_personality_v0;

enum { OMITTED = 0xff, ULEB128 = 1 };

static uint64_t uleb128(const uint8_t **at)
{
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        const uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            return value;
        }
    }
}

static int64_t sleb128(const uint8_t **at)
{
    const uint8_t *start = *at;
    const uint64_t value = uleb128(at);
    const unsigned bits = 7 * (unsigned)(*at - start);
    return bits < 64 && (*at)[-1] & 0x40 ? (int64_t)(value | ~(uint64_t)0 << bits) : (int64_t)value;
}

static uint64_t number(uint8_t encoding, const uint8_t **at)
{
    uint32_t value;
    if ((encoding & 0xf) == ULEB128) {
        return uleb128(at);
    }
    memcpy(&value, *at, sizeof value);
    *at += sizeof value;
    return value;
}

/* Whether a type of the table is none: what `@catch (...)` leaves there. Its entries have eight bytes on AArch64, four
 * on x86-64. */
static int catches_all(const uint8_t *types, uint8_t encoding, int64_t filter)
{
    const unsigned form = encoding & 0xf;
    const int bytes = form == 0 || form == 4 || form == 0xc ? 8 : 4; /* DW_EH_PE_absptr, udata8, sdata8 */
    uint64_t entry = 0;
    memcpy(&entry, types - bytes * filter, (size_t)bytes);
    return entry == 0;
}

/* The landing pad of a foreign exception in a frame, or NULL; `filter` is 0 for what only cleans up. */
static const uint8_t *landing_pad(struct _Unwind_Context *context, int64_t *filter)
{
    const uint8_t *at = (const uint8_t *)_Unwind_GetLanguageSpecificData(context);
    const uint64_t start = _Unwind_GetRegionStart(context), ip = _Unwind_GetIP(context) - 1 - start;
    const uint8_t *types = NULL, *actions;
    uint8_t encoding, type_encoding;
    uint64_t length;
    if (!at || *at++ != OMITTED) {
        return NULL; /* landing pads that are not relative to the function: clang makes none */
    }
    type_encoding = *at++;
    if (type_encoding != OMITTED) {
        length = uleb128(&at);
        types = at + length;
    }
    encoding = *at++;
    length = uleb128(&at);
    actions = at + length;
    while (at < actions) {
        const uint64_t from = number(encoding, &at), size = number(encoding, &at), pad = number(encoding, &at);
        const uint64_t action = uleb128(&at);
        const uint8_t *record = actions + action - 1;
        int cleans = action == 0;
        if (ip < from || ip >= from + size) {
            continue;
        }
        if (!pad) {
            return NULL;
        }
        for (int64_t next = action != 0; next;) {
            const uint8_t *next_at;
            *filter = sleb128(&record);
            if (*filter > 0 && catches_all(types, type_encoding, *filter)) {
                return (const uint8_t *)start + pad;
            }
            cleans |= *filter == 0;
            next_at = record;
            next = sleb128(&record);
            record = next_at + next;
        }
        *filter = 0;
        return cleans ? (const uint8_t *)start + pad : NULL;
    }
    return NULL;
}

_Unwind_Reason_Code __gnu_objc_personality_v0(int version, _Unwind_Action actions, _Unwind_Exception_Class class,
                                              struct _Unwind_Exception *exception, struct _Unwind_Context *context)
{
    static const char objective_c[] = "GNUCOBJC"; /* gcc, libobjc/exception.c */
    const uint8_t *pad;
    int64_t filter = 0;
    uint64_t own = 0;
    for (int i = 0; i < 8; ++i) {
        own = own << 8 | (uint8_t)objective_c[i];
    }
    if (class == own) {
        Personality *gnu;
        *(void **)&gnu = dlsym(RTLD_NEXT, "__gnu_objc_personality_v0");
        return gnu(version, actions, class, exception, context);
    }
    pad = landing_pad(context, &filter);
    if (!pad || (!filter && (actions & _UA_SEARCH_PHASE))) {
        return _URC_CONTINUE_UNWIND;
    }
    if (actions & _UA_SEARCH_PHASE) {
        return _URC_HANDLER_FOUND;
    }
    _Unwind_SetGR(context, __builtin_eh_return_data_regno(0), filter ? 0 : (uintptr_t)exception);
    _Unwind_SetGR(context, __builtin_eh_return_data_regno(1), (uintptr_t)filter);
    _Unwind_SetIP(context, (uintptr_t)pad);
    if (filter) {
        _Unwind_DeleteException(exception);
    }
    return _URC_INSTALL_CONTEXT;
}
