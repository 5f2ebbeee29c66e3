/*
 * mpsgraph_facts.m - asks MPSGraph what its headers do not say; scripts/first-mac-run builds and runs it on macOS 14
 * and later. One question a process, since an assertion in MPSGraph ends it:
 *
 *   mpsgraph_facts fresh KIND PACKAGE     compiles A B, says in which order the executable takes its inputs, runs it
 *                                         in that order, and saves it
 *   mpsgraph_facts loaded KIND PACKAGE    loads that, and says what feedTensors and targetTensors are
 *   mpsgraph_facts ab KIND PACKAGE        loads that, and runs it with A before B
 *   mpsgraph_facts ba KIND PACKAGE        the same with B before A
 *   mpsgraph_facts sum K                  16 x K ones by K x 16 ones: is each sum K?
 *
 * KIND is `square` (one shape for both), `oblong` (two shapes) or `b-first` (two, and B is the first of the graph).
 * Answers are facts, not faults: the exit status is 0 wherever there was one.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>
#import <MetalPerformanceShaders/MetalPerformanceShaders.h>
#import <MetalPerformanceShadersGraph/MetalPerformanceShadersGraph.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Matrix {
    NSUInteger rows, cols;
    float *values;
    MPSGraphTensorData *data; /* of `values`, shared with the device */
} Matrix;

static id<MTLDevice> device;

static NSArray *shape(NSUInteger rows, NSUInteger cols)
{
    return [NSArray arrayWithObjects:[NSNumber numberWithUnsignedLongLong:rows], [NSNumber numberWithUnsignedLongLong:cols], nil];
}

/* What a kernel would add that reads behind a matrix, as long sums on M1 were seen to (pytorch#195163). */
#define BEHIND 65536u

static Matrix matrix(NSUInteger rows, NSUInteger cols)
{
    Matrix made = {rows, cols, NULL, nil};
    id<MTLBuffer> buffer = [device newBufferWithLength:(rows * cols + BEHIND) * sizeof(float)
                                               options:MTLResourceStorageModeShared];
    if (!buffer) {
        printf("answer: none, Metal made no buffer\n");
        exit(1);
    }
    made.values = [buffer contents];
    for (NSUInteger i = 0; i < BEHIND; ++i) {
        made.values[rows * cols + i] = 1e6f;
    }
    made.data = [[MPSGraphTensorData alloc] initWithMTLBuffer:buffer shape:shape(rows, cols) dataType:MPSDataTypeFloat32];
    return made;
}

/* Whole numbers, so that sums are exact; no product of two such matrices is the same the other way round. */
static void fill(Matrix *m, float first)
{
    for (NSUInteger i = 0; i < m->rows * m->cols; ++i) {
        m->values[i] = first + (float)i;
    }
}

static float product(const Matrix *left, const Matrix *right, NSUInteger row, NSUInteger col)
{
    float sum = 0;
    for (NSUInteger p = 0; p < left->cols; ++p) {
        sum += left->values[row * left->cols + p] * right->values[p * right->cols + col];
    }
    return sum;
}

static BOOL is_product(const Matrix *c, const Matrix *left, const Matrix *right)
{
    if (left->cols != right->rows || c->rows != left->rows || c->cols != right->cols) {
        return NO;
    }
    for (NSUInteger row = 0; row < c->rows; ++row) {
        for (NSUInteger col = 0; col < c->cols; ++col) {
            if (c->values[row * c->cols + col] != product(left, right, row, col)) {
                return NO;
            }
        }
    }
    return YES;
}

static MPSGraphCompilationDescriptor *descriptor(void)
{
    MPSGraphCompilationDescriptor *made = [[[MPSGraphCompilationDescriptor alloc] init] autorelease];
    [made setOptimizationLevel:MPSGraphOptimizationLevel0];
    [made setWaitForCompilationCompletion:YES];
    return made;
}

static MPSGraphTensor *placeholder(MPSGraph *graph, const Matrix *m, NSString *name)
{
    return [graph placeholderWithShape:shape(m->rows, m->cols) dataType:MPSDataTypeFloat32 name:name];
}

/* A B, compiled; `tensors` becomes the placeholders of A and B. */
static MPSGraphExecutable *compile(const Matrix *a, const Matrix *b, BOOL b_first, MPSGraphTensor *tensors[2])
{
    MPSGraph *graph = [[[MPSGraph alloc] init] autorelease];
    NSMutableDictionary *feeds = [NSMutableDictionary dictionary];
    const Matrix *operands[2] = {a, b};
    MPSGraphTensor *c;
    if (b_first) {
        tensors[1] = placeholder(graph, b, @"B");
        tensors[0] = placeholder(graph, a, @"A");
    } else {
        tensors[0] = placeholder(graph, a, @"A");
        tensors[1] = placeholder(graph, b, @"B");
    }
    for (int i = 0; i < 2; ++i) {
        [feeds setObject:[[[MPSGraphShapedType alloc] initWithShape:shape(operands[i]->rows, operands[i]->cols)
                                                           dataType:MPSDataTypeFloat32] autorelease]
                  forKey:tensors[i]];
    }
    c = [graph matrixMultiplicationWithPrimaryTensor:tensors[0] secondaryTensor:tensors[1] name:nil];
    return [graph compileWithDevice:[MPSGraphDevice deviceWithMTLDevice:device]
                              feeds:feeds
                      targetTensors:[NSArray arrayWithObject:c]
                   targetOperations:nil
              compilationDescriptor:descriptor()];
}

/* Runs the executable, and waits; NO where the device reports an error. */
static BOOL run(MPSGraphExecutable *executable, const Matrix *first, const Matrix *second, const Matrix *c)
{
    id<MTLCommandQueue> queue = [device newCommandQueue];
    MPSCommandBuffer *commands = [MPSCommandBuffer commandBufferFromCommandQueue:queue];
    id<MTLCommandBuffer> last;
    NSArray *results = [executable encodeToCommandBuffer:commands
                                             inputsArray:[NSArray arrayWithObjects:first->data, second->data, nil]
                                            resultsArray:[NSArray arrayWithObjects:c->data, nil]
                                     executionDescriptor:nil];
    last = [[[commands rootCommandBuffer] retain] autorelease];
    [commands commit];
    [last waitUntilCompleted];
    if ([results count] != 1 || [last status] != MTLCommandBufferStatusCompleted || [last error]) {
        printf("answer: none, %lu results, status %lu: %s\n", (unsigned long)[results count], (unsigned long)[last status],
               [last error] ? [[[last error] description] UTF8String] : "no error");
        return NO;
    }
    return YES;
}

static void list(const char *what, NSArray *tensors)
{
    if (!tensors) {
        printf("%s: nil\n", what);
        return;
    }
    printf("%s: %lu", what, (unsigned long)[tensors count]);
    for (MPSGraphTensor *tensor in tensors) {
        NSString *name = [[tensor operation] name];
        NSMutableString *extents = [NSMutableString string];
        for (NSNumber *extent in [tensor shape]) {
            [extents appendFormat:@"%s%@", [extents length] ? "x" : "", extent];
        }
        printf(", %s %s", name ? [name UTF8String] : "(no name)", [extents UTF8String]);
    }
    printf("\n");
}

static int ask_order(const char *step, const char *kind, const char *path)
{
    const BOOL square = strcmp(kind, "square") == 0, b_first = strcmp(kind, "b-first") == 0;
    NSURL *url = [NSURL fileURLWithPath:[NSString stringWithUTF8String:path] isDirectory:YES];
    Matrix a = square ? matrix(3, 3) : matrix(2, 3), b = square ? matrix(3, 3) : matrix(3, 5);
    Matrix c = matrix(a.rows, b.cols);
    MPSGraphTensor *tensors[2];
    MPSGraphExecutable *executable;
    const Matrix *first = &a, *second = &b;
    fill(&a, 1);
    fill(&b, 20);
    if (strcmp(step, "fresh") == 0) {
        executable = compile(&a, &b, b_first, tensors);
        list("feedTensors", [executable feedTensors]);
        list("targetTensors", [executable targetTensors]);
        if ([[executable feedTensors] count] == 2 && [[executable feedTensors] objectAtIndex:0] == tensors[1]) {
            first = &b;
            second = &a;
        }
        printf("order: %s\n", first == &a ? "A, B" : "B, A");
    } else {
        executable = [[[MPSGraphExecutable alloc] initWithMPSGraphPackageAtURL:url compilationDescriptor:descriptor()] autorelease];
        if (strcmp(step, "ba") == 0) {
            first = &b;
            second = &a;
        }
    }
    if (!executable) {
        printf("answer: none, there is no executable\n");
        return 1;
    }
    if (strcmp(step, "loaded") == 0) {
        list("feedTensors", [executable feedTensors]);
        list("targetTensors", [executable targetTensors]);
        return 0;
    }
    /* An assertion may end the process in there. */
    fflush(stdout);
    if (!run(executable, first, second, &c)) {
        return 1;
    }
    printf("answer: C is %s\n", is_product(&c, &a, &b) ? "A B" : is_product(&c, &b, &a) ? "B A" : "neither A B nor B A");
    if (strcmp(step, "fresh") == 0) {
        [executable serializeToMPSGraphPackageAtURL:url
                                         descriptor:[[[MPSGraphExecutableSerializationDescriptor alloc] init] autorelease]];
        printf("package: %s\n", [[NSFileManager defaultManager] fileExistsAtPath:[url path]] ? "written" : "not written");
    }
    return 0;
}

static int ask_sum(NSUInteger k)
{
    Matrix a = matrix(16, k), b = matrix(k, 16), c = matrix(16, 16);
    MPSGraphTensor *tensors[2];
    MPSGraphExecutable *executable;
    NSUInteger wrong = 0;
    for (NSUInteger i = 0; i < 16 * k; ++i) {
        a.values[i] = b.values[i] = 1;
    }
    executable = compile(&a, &b, NO, tensors);
    if (!executable || !run(executable, [[executable feedTensors] objectAtIndex:0] == tensors[1] ? &b : &a,
                            [[executable feedTensors] objectAtIndex:0] == tensors[1] ? &a : &b, &c)) {
        return 1;
    }
    for (NSUInteger i = 0; i < 256; ++i) {
        wrong += c.values[i] != (float)k;
    }
    printf("16 x %lu x 16 ones: %lu of 256 sums are wrong, the first is %g\n", (unsigned long)k, (unsigned long)wrong,
           (double)c.values[0]);
    return 0;
}

int main(int argc, char **argv)
{
    int status = 2;
    @autoreleasepool {
        device = MTLCreateSystemDefaultDevice();
        if (!device) {
            printf("answer: none, there is no Metal device\n");
            return 1;
        }
        printf("device: %s\n", [[device name] UTF8String]);
        if (argc > 2 && strcmp(argv[1], "sum") == 0) {
            status = 0;
            for (int i = 2; i < argc; ++i) {
                status |= ask_sum((NSUInteger)strtoul(argv[i], NULL, 10));
            }
        } else if (argc == 4) {
            status = ask_order(argv[1], argv[2], argv[3]);
        }
    }
    return status;
}
