// Declarations of Apple's runtime, as far as metal-cpp uses them: enough to check types, not to link.
#pragma once
typedef struct objc_class* Class;
struct objc_object {};
typedef objc_object* id;
typedef struct objc_selector* SEL;
typedef struct objc_protocol Protocol;
typedef struct objc_method* Method;
typedef void (*IMP)(void);
typedef signed char BOOL;
extern "C" {
Class objc_lookUpClass(const char*);
Class objc_getClass(const char*);
Protocol* objc_getProtocol(const char*);
SEL sel_registerName(const char*);
Class object_getClass(const void*);
Method class_getInstanceMethod(Class, SEL);
IMP method_getImplementation(Method);
IMP class_getMethodImplementation(Class, SEL);
}
