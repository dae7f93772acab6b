"""How cuda_ops/report.py reads the compiler's words."""

import importlib.util
import sys
from pathlib import Path

import pytest

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4copyPf' for 'sm_90'
ptxas info    : Function properties for _Z4copyPf
    16 bytes stack frame, 24 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3sumIdEvPT_' for 'sm_90'
ptxas info    : Function properties for _Z3sumIdEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers
"""
PTX = """.visible .entry _Z4copyPf(
	.param .u64 _Z4copyPf_param_0
)
{
	ld.param.b64 	%rd1, [_Z4copyPf_param_0];
	ld.global.nc.v4.f32 	{%f1, %f2, %f3, %f4}, [%rd1];
	ld.volatile.global.v2.b64 	{%rd3, %rd4}, [%rd1];
	ld.global.nc.L1::no_allocate.v2.f32 	{%f5, %f6}, [%rd1];
	@%p1 ld.global.u8 	%rs1, [%rd1+16];
	ld.shared.v4.f32 	{%f1, %f2, %f3, %f4}, [%r1];
}
.weak .entry _Z3sumIdEvPT_(
	.param .u64 .ptr .align 1 _Z3sumIdEvPT__param_0
)
{
	ld.global.f64 	%fd1, [%rd1];
}
"""


@pytest.fixture
def report(monkeypatch):
    """The script, as it finds its neighbour when it is run."""
    path = Path(__file__).resolve().parent.parent / "cuda_ops" / "report.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("kernel_report", path)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    return script


def test_registers_spills_and_widths(report):
    copy, add = report.kernels_of(LOG, PTX)
    assert copy == report.Kernel("_Z4copyPf", "90", 38, 64, 16, 2048, 2, 4)
    assert add == report.Kernel("_Z3sumIdEvPT_", "90", 20, 0, 0, 0, 0, 1)
    heading, *rows = report.table([copy, add]).splitlines()
    assert heading.split()[:3] == ["kernel", "sm", "registers"]
    assert [row.split()[-3:] for row in rows] == [["2", "of", "4"], ["0", "of", "1"]]


def test_spills_and_narrow_loads_are_faults(report):
    vector = report.Kernel("_Z3sumIfLi4ELi3EEvPT_", "90", 20, 0, 0, 0, 2, 4)
    single = report.Kernel("_Z3sumIfLi1ELi3EEvPT_", "90", 20, 0, 0, 0, 0, 4)
    assert vector.faults() == single.faults() == []
    assert vector._replace(wide=0).faults() == ["has no 16-byte loads"]
    assert single._replace(spilled=64).faults() == ["spills 64 bytes"]
