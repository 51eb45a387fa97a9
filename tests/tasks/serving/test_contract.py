"""The tables of the client contracts."""

from __future__ import annotations

from tasks.serving.contract import CONTRACT, inputs_of, outputs_of


def test_the_first_contract_stays_as_it_was() -> None:
    assert {entry.name: entry.data_type for entry in inputs_of(1)} == {
        **dict.fromkeys(("text_input", "bad_words", "stop_words"), "BYTES"),
        **dict.fromkeys(("guided_decoding_guide_type", "guided_decoding_guide"), "BYTES"),
        **dict.fromkeys(("max_tokens", "end_id", "pad_id", "top_k", "beam_width", "min_tokens", "min_length"), "INT32"),
        **dict.fromkeys(("top_p", "temperature", "length_penalty", "repetition_penalty"), "FP32"),
        **dict.fromkeys(("presence_penalty", "frequency_penalty"), "FP32"),
        **dict.fromkeys(("seed", "random_seed"), "UINT64"),
        **dict.fromkeys(("stream", "return_log_probs", "exclude_input_in_output"), "BOOL"),
    }
    assert {entry.name: entry.dims for entry in outputs_of(1)} == {
        "text_output": (-1,),
        "cum_log_probs": (-1,),
        "output_log_probs": (-1, -1),
    }
    assert [entry.name for entry in inputs_of(1) if entry.required_until >= 1] == ["text_input", "max_tokens"]


def test_a_later_contract_only_adds_and_requires_nothing() -> None:
    assert {*inputs_of(1)} < {*inputs_of(CONTRACT)} and {*outputs_of(1)} < {*outputs_of(CONTRACT)}
    assert not [entry for entry in inputs_of(CONTRACT) if entry.required_until >= CONTRACT]
