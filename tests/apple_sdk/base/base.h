/*
 * What the generated declarations rest on and objc2's generated sources leave out: the runtime's own
 * types, NSObject, methods with variable arguments, os_signpost. From Apple's public documentation.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <TargetConditionals.h>

typedef long NSInteger;
typedef unsigned long NSUInteger;
typedef double CGFloat;
typedef unsigned short unichar;
typedef _Bool BOOL;
#define YES __objc_yes
#define NO __objc_no
#define nil ((id)0)
#define NSIntegerMax INTPTR_MAX
#define NSUIntegerMax UINTPTR_MAX
/* MTLResource.h's shifts, which are macros there. */
enum : NSUInteger {
    MTLResourceCPUCacheModeShift = 0,
    MTLResourceStorageModeShift = 4,
    MTLResourceHazardTrackingModeShift = 8,
};
#define NSNotFound NSIntegerMax

typedef struct _NSZone NSZone;
typedef struct _NSRange {
    NSUInteger location, length;
} NSRange;
typedef struct {
    unsigned long state;
    id __unsafe_unretained *itemsPtr;
    unsigned long *mutationsPtr;
    unsigned long extra[5];
} NSFastEnumerationState;
typedef NSInteger NSComparisonResult;
typedef double NSTimeInterval;
typedef double CFTimeInterval;

@class NSString, NSMethodSignature;

@protocol NSObject
- (BOOL)isEqual:(id)object;
- (NSUInteger)hash;
- (Class)superclass;
- (Class)class;
- (instancetype)self;
- (BOOL)isKindOfClass:(Class)aClass;
- (BOOL)conformsToProtocol:(Protocol *)protocol;
- (BOOL)respondsToSelector:(SEL)selector;
- (id)performSelector:(SEL)selector;
- (instancetype)retain;
- (oneway void)release;
- (instancetype)autorelease;
- (NSUInteger)retainCount;
- (NSString *)description;
@end

@protocol NSCopying
- (id)copyWithZone:(NSZone *)zone;
@end
@protocol NSMutableCopying
- (id)mutableCopyWithZone:(NSZone *)zone;
@end

__attribute__((objc_root_class))
@interface NSObject <NSObject>
+ (instancetype)new;
+ (instancetype)alloc;
- (instancetype)init;
- (void)dealloc;
- (id)copy;
+ (Class)class;
+ (BOOL)instancesRespondToSelector:(SEL)selector;
@end
