/*
 * MetalPerformanceShadersGraph.h - declarations of the part that ane_mpsgraph.m uses, for a test double
 * on Linux. Names, types and values are those of Apple's documentation; the instance variables are the
 * double's.
 */
#ifndef ANE_SIM_MPSGRAPH_H
#define ANE_SIM_MPSGRAPH_H

#import <MetalPerformanceShaders/MetalPerformanceShaders.h>

typedef NSArray MPSShape;
typedef NS_ENUM(uint64_t, MPSGraphOptimization) { MPSGraphOptimizationLevel0 = 0, MPSGraphOptimizationLevel1 = 1 };
typedef NS_ENUM(NSUInteger, MPSGraphReducedPrecisionFastMath) {
    MPSGraphReducedPrecisionFastMathNone = 0,
    MPSGraphReducedPrecisionFastMathAllowFP16Intermediates = 2,
};

@interface MPSGraphDevice : SimObject
+ (instancetype)deviceWithMTLDevice:(id<MTLDevice>)device;
@end

@interface MPSGraphTensor : SimObject <NSCopying> {
@public
    int kind;
    NSUInteger index;
    NSUInteger inputs[3];
    NSUInteger input_count;
    NSArray *extents;
    MPSDataType element;
    NSData *data;
    double scalar;
}
- (NSArray *)shape;
- (MPSDataType)dataType;
@end

@interface MPSGraphShapedType : SimObject {
@public
    NSArray *extents;
    MPSDataType element;
}
- (instancetype)initWithShape:(NSArray *)shape dataType:(MPSDataType)dataType;
@end

@interface MPSGraphTensorData : SimObject {
@public
    id<MTLBuffer> buffer;
    NSArray *extents;
    MPSDataType element;
    int runs; /* encoded and not done, which do not retain it */
    BOOL dead;
}
- (instancetype)initWithMTLBuffer:(id<MTLBuffer>)buffer shape:(NSArray *)shape dataType:(MPSDataType)dataType;
@end

@interface MPSGraphCompilationDescriptor : SimObject {
@public
    int64_t level;
}
- (void)setOptimizationLevel:(MPSGraphOptimization)level;
- (void)setWaitForCompilationCompletion:(BOOL)wait;
- (void)setReducedPrecisionFastMath:(MPSGraphReducedPrecisionFastMath)mode;
@end

@interface MPSGraphExecutableExecutionDescriptor : SimObject
@end

@interface MPSGraphExecutableSerializationDescriptor : SimObject
@end

@interface MPSGraphExecutable : SimObject {
@public
    NSArray *nodes;
    NSArray *feeds;
    MPSGraphTensor *target;
    int encoding;
    BOOL silent; /* from a package: tells neither feeds nor targets */
}
- (instancetype)initWithMPSGraphPackageAtURL:(NSURL *)url
                       compilationDescriptor:(MPSGraphCompilationDescriptor *)descriptor;
- (NSArray *)feedTensors;
- (NSArray *)targetTensors;
- (NSArray *)encodeToCommandBuffer:(MPSCommandBuffer *)commands
                       inputsArray:(NSArray *)inputs
                      resultsArray:(NSArray *)results
               executionDescriptor:(MPSGraphExecutableExecutionDescriptor *)descriptor;
- (void)serializeToMPSGraphPackageAtURL:(NSURL *)url
                             descriptor:(MPSGraphExecutableSerializationDescriptor *)descriptor;
@end

@interface MPSGraph : SimObject {
@public
    NSMutableArray *nodes;
}
- (MPSGraphTensor *)placeholderWithShape:(NSArray *)shape dataType:(MPSDataType)type name:(NSString *)name;
- (MPSGraphTensor *)constantWithData:(NSData *)data shape:(NSArray *)shape dataType:(MPSDataType)type;
- (MPSGraphTensor *)constantWithScalar:(double)scalar dataType:(MPSDataType)type;
- (MPSGraphTensor *)broadcastTensor:(MPSGraphTensor *)x toShape:(NSArray *)shape name:(NSString *)name;
- (MPSGraphTensor *)castTensor:(MPSGraphTensor *)x toType:(MPSDataType)type name:(NSString *)name;
- (MPSGraphTensor *)transposeTensor:(MPSGraphTensor *)x
                          dimension:(NSUInteger)dimension
                      withDimension:(NSUInteger)other
                               name:(NSString *)name;
- (MPSGraphTensor *)matrixMultiplicationWithPrimaryTensor:(MPSGraphTensor *)x
                                          secondaryTensor:(MPSGraphTensor *)y
                                                     name:(NSString *)name;
- (MPSGraphTensor *)additionWithPrimaryTensor:(MPSGraphTensor *)x
                              secondaryTensor:(MPSGraphTensor *)y
                                         name:(NSString *)name;
- (MPSGraphTensor *)multiplicationWithPrimaryTensor:(MPSGraphTensor *)x
                                    secondaryTensor:(MPSGraphTensor *)y
                                               name:(NSString *)name;
- (MPSGraphTensor *)lessThanWithPrimaryTensor:(MPSGraphTensor *)x
                              secondaryTensor:(MPSGraphTensor *)y
                                         name:(NSString *)name;
- (MPSGraphTensor *)selectWithPredicateTensor:(MPSGraphTensor *)predicate
                          truePredicateTensor:(MPSGraphTensor *)x
                         falsePredicateTensor:(MPSGraphTensor *)y
                                         name:(NSString *)name;
- (MPSGraphTensor *)erfWithTensor:(MPSGraphTensor *)x name:(NSString *)name;
- (MPSGraphTensor *)tanhWithTensor:(MPSGraphTensor *)x name:(NSString *)name;
- (MPSGraphTensor *)sigmoidWithTensor:(MPSGraphTensor *)x name:(NSString *)name;
- (MPSGraphExecutable *)compileWithDevice:(MPSGraphDevice *)device
                                    feeds:(NSDictionary *)feeds
                            targetTensors:(NSArray *)targets
                         targetOperations:(NSArray *)operations
                    compilationDescriptor:(MPSGraphCompilationDescriptor *)descriptor;
@end

#endif
