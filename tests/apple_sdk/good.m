/* Sends that are right; faults.txt has what scripts/test-apple-types makes wrong in them. */
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

id<MTLBuffer> good(id<MTLDevice> device, const void *source, NSUInteger bytes);
id<MTLBuffer> good(id<MTLDevice> device, const void *source, NSUInteger bytes) {
    MTLCompileOptions *options = [[[MTLCompileOptions alloc] init] autorelease];
    NSError *error = nil;
    id<MTLLibrary> library = [device newLibraryWithSource:@"" options:options error:&error];
    id<MTLCommandQueue> queue = [device newCommandQueue];
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
    [encoder setBytes:source length:bytes atIndex:0];
    [encoder dispatchThreadgroups:(MTLSize){1, 1, 1} threadsPerThreadgroup:(MTLSize){32, 1, 1}];
    [encoder endEncoding];
    [commands commit];
    if ([commands status] == MTLCommandBufferStatusCompleted) bytes += 1;
    id<MTLBuffer> buffer = [device newBufferWithLength:bytes options:MTLResourceStorageModeShared];
    [library release];
    [queue release];
    return buffer;
}
