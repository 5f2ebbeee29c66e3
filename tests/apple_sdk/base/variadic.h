/* Declared after the generated classes: what the generated sources leave out of them. */
@interface NSString (Variadic)
+ (instancetype)stringWithFormat:(NSString *)format, ... __attribute__((format(__NSString__, 1, 2)));
- (instancetype)initWithFormat:(NSString *)format, ... __attribute__((format(__NSString__, 1, 2)));
- (instancetype)initWithFormat:(NSString *)format arguments:(__builtin_va_list)arguments;
@end
@interface NSMutableString (Variadic)
- (void)appendFormat:(NSString *)format, ... __attribute__((format(__NSString__, 1, 2)));
@end
@interface NSArray (Variadic)
+ (instancetype)arrayWithObjects:(id)first, ... __attribute__((sentinel));
@end
/* Written by hand in objc2-foundation, and so not among the generated sources. */
@interface NSMutableData (ByHand)
- (void *)mutableBytes;
@end
