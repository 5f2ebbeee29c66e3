/*
 * MetalPerformanceShaders.h - declarations of the part that ane_mpsgraph.m uses, for a test double on
 * Linux. Names, types and values are those of Apple's documentation.
 */
#ifndef ANE_SIM_MPS_H
#define ANE_SIM_MPS_H

#import <Metal/Metal.h>

typedef NS_ENUM(uint32_t, MPSDataType) {
    MPSDataTypeFloatBit = 0x10000000,
    MPSDataTypeFloat32 = MPSDataTypeFloatBit | 32,
    MPSDataTypeFloat16 = MPSDataTypeFloatBit | 16,
    MPSDataTypeBool = (uint32_t)0x80000000 | 8,
};

/* Counts itself among the double's live objects. */
@interface SimObject : NSObject
@end

/* The instance variables are the double's. */
@interface MPSCommandBuffer : SimObject <MTLCommandBuffer> {
@public
    id<MTLCommandQueue> queue;
    id<MTLCommandBuffer> current;
}
+ (instancetype)commandBufferFromCommandQueue:(id<MTLCommandQueue>)queue;
- (id<MTLCommandBuffer>)rootCommandBuffer;
@end

#endif
