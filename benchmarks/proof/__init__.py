"""What can be said of the GPU kernels where there is no GPU (`python -m benchmarks.proof`).

Each kernel is compiled in every form in which it is launched, for every architecture that is built
for. What ptxas reports and what the disassembly shows is held against gates; a prediction of what
bounds the kernel comes along. docs/architecture.md says what this proves and what it does not.
"""
