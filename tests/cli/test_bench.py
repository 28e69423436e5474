"""`fusible bench`."""

import pytest

from support.commands import output_of, run


def test_bench(source):
    rows = output_of("bench", source, "--batch-size", "1", "--batch-size", "3", "--repeats", "2")
    assert [row["batch_size"] for row in rows] == [1, 3]
    for row in rows:
        before, after = row["training"]["latency_ms"], row["fused"]["latency_ms"]
        assert row["device"] == "cpu" and row["speedup"] == pytest.approx(before / after)
        assert row["fused"]["inputs_per_second"] == pytest.approx(1e3 * row["batch_size"] / after)
    result = run("bench", source, "--batch-size", "2", "--repeats", "1", "--dtype", "bfloat16")
    assert result.exit_code == 0 and "bfloat16" in result.stdout and "times faster" in result.stdout
