// What is not a kernel, in one file for the compiler: each of these is short, and most of what it
// would take by itself are the headers that all of them include.
#include "cpu/attention.cpp"
#include "cpu/caches.cpp"
#include "cpu/isa.cpp"
#include "cpu/launch.cpp"
#include "cpu/launch_group_norm.cpp"
#include "cpu/pages.cpp"
#include "cpu/parallel.cpp"
#include "prepared.cpp"
#include "remembered.cpp"
