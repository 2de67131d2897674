"""Finding the main loop and its longest turn, in code written for the purpose."""

from __future__ import annotations

from benchmarks.proof.machine_code import Code, _code, _graphs, global_access

USED = {"REG": 32, "STACK": 0, "SHARED": 0}


def code(*lines: str) -> Code:
    """Of lines that are a label or an instruction."""
    text = [".text.kernel:"]
    text += [line if line.endswith(":") else f"        /*0010*/    {line} ;" for line in lines]
    return _code(_graphs("\n".join(text))["kernel"], USED)


def test_the_loop_that_moves_most_is_the_main_loop() -> None:
    found = code(
        ".L_x_0:", "LDG.E.U16 R0, [R2.64]", "@P0 BRA `(.L_x_0)",
        ".L_x_1:", "LDG.E.128 R4, [R2.64]", "FADD R4, R4, R4", "@P0 BRA `(.L_x_1)",
        "EXIT",
    )  # fmt: skip
    assert found.loop == {"LDG.E.128": 1, "FADD": 1, "BRA": 1}


def test_loads_under_a_mask_do_not_make_a_main_loop() -> None:
    found = code(
        ".L_x_0:", "LDG.E.64 R4, [R2.64]", "@P0 BRA `(.L_x_0)",
        ".L_x_1:", "@P1 LDG.E.128 R4, [R2.64]", "@P0 BRA `(.L_x_1)",
        "EXIT",
    )  # fmt: skip
    assert found.accesses() == {("load", 8): 1}


def test_branches_that_exclude_each_other_are_not_added_up() -> None:
    found = code(
        ".L_x_0:", "LDG.E R4, [R2.64]", "@P0 BRA `(.L_x_1)",
        "FADD R4, R4, R4", "FADD R4, R4, R4", "BRA `(.L_x_2)",
        ".L_x_1:", "FMUL R4, R4, R4",
        ".L_x_2:", "STG.E [R2.64], R4", "@P1 BRA `(.L_x_0)",
        "EXIT",
    )  # fmt: skip
    assert found.count("FADD") == 2
    assert found.count("FMUL") == 0
    assert found.turn == 7


def test_a_switch_is_a_branch_to_each_of_its_targets() -> None:
    found = code(
        ".L_x_0:", 'BRX R2 -0x10 (*"BRANCH_TARGETS .L_x_1,.L_x_2"*)',
        ".L_x_1:", "LDG.E.128 R4, [R2.64]", "BRA `(.L_x_3)",
        ".L_x_2:", "LDG.E.64 R4, [R2.64]",
        ".L_x_3:", "@P0 BRA `(.L_x_0)",
        "EXIT",
    )  # fmt: skip
    assert found.accesses() == {("load", 16): 1}
    assert found.widths == (8, 16)


def test_a_way_by_a_subroutine_is_the_rare_case() -> None:
    found = code(
        ".L_x_0:", "LDG.E R4, [R2.64]", "@P0 BRA `(.L_x_1)",
        "MOV R1, R2", "MOV R1, R2", "CALL.REL.NOINC `($__internal_0_$__cuda_sm20_sqrt_rn_f32_slowpath)",
        "BRA `(.L_x_2)",
        ".L_x_1:", "FMUL R4, R4, R4",
        ".L_x_2:", "@P1 BRA `(.L_x_0)",
        "EXIT",
    )  # fmt: skip
    assert found.count("MOV", "CALL") == 0
    assert found.count("FMUL") == 1


def test_a_call_of_a_plain_label_is_a_jump() -> None:
    found = code(
        ".L_x_0:", "LDG.E R4, [R2.64]", "@P0 CALL.REL.NOINC `(.L_x_1)", "BRA `(.L_x_0)",
        ".L_x_1:", "EXIT",
    )  # fmt: skip
    assert found.loop == {"LDG.E": 1, "CALL.REL.NOINC": 1, "BRA": 1}


def test_only_the_innermost_loop_counts() -> None:
    found = code(
        ".L_x_0:", "LDG.E.128 R4, [R2.64]",
        ".L_x_1:", "LDG.E R4, [R2.64]", "@P0 BRA `(.L_x_1)",
        "@P1 BRA `(.L_x_0)",
        "EXIT",
    )  # fmt: skip
    assert found.accesses() == {("load", 4): 1}


def test_local_memory_is_counted_in_the_whole_kernel() -> None:
    assert code("STL [R1], R2", "LDL.64 R2, [R1]", "EXIT").local == 2


def test_accesses() -> None:
    assert global_access("LDG.E.128.CONSTANT") == ("load", 16)
    assert global_access("LDG.E.U8") == ("load", 1)
    assert global_access("ST.E.U16") == ("store", 2)
    assert global_access("STG.E") == ("store", 4)
    assert global_access("LDS.128") is None


def test_loops_that_wait_are_no_loops() -> None:
    """As sm_100 has them for what its tensor cores and asynchronous copies have begun."""
    found = code(
        ".L_x_0:", "FADD R4, R4, R4", "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR15], R4",
        "@!P1 BRA `(.L_x_2)",
        ".L_x_1:", "@P2 BRA `(.L_x_3)", "UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR12]",
        ".L_x_3:", "@P0 BRA `(.L_x_0)", "EXIT",
        ".L_x_2:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR15], R4", "@!P1 BRA `(.L_x_2)",
        "BRA `(.L_x_1)",
    )  # fmt: skip
    assert found.loop == {
        "FADD": 1, "SYNCS.PHASECHK.TRANS64.TRYWAIT": 1, "UTCHMMA": 1, "BRA": 3,
    }  # fmt: skip


def test_of_two_loops_the_one_that_keeps_the_tensor_cores_busy_is_the_main_loop() -> None:
    for product in ("HMMA.16816.F32.BF16", "HGMMA.64x64x16.F32.BF16", "UTCHMMA"):
        found = code(
            ".L_x_0:", "LDG.E.128 R4, [R2.64]", "@P0 BRA `(.L_x_0)",
            ".L_x_1:", f"{product} R4, R8, R12, R4", "@P0 BRA `(.L_x_1)",
            "EXIT",
        )  # fmt: skip
        assert found.loop == {product: 1, "BRA": 1}
