"""ERTA Compare as ComfyUI runs it: what it accepts, what it gives out and what it refuses."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def node(comfy_pack: ModuleType) -> Any:
    return importlib.import_module("ertacache.nodes.compare").ERTACompare


def images(frames: int = 5, height: int = 20, width: int = 30) -> torch.Tensor:
    return 0.2 + 0.6 * torch.rand((frames, height, width, 3), generator=torch.Generator().manual_seed(3))


def worsened(clip: torch.Tensor, errors: list[float]) -> torch.Tensor:
    """Every value of frame n is off by errors[n]: its PSNR is -20 log10(errors[n]) by definition."""
    return clip + torch.tensor(errors)[:, None, None, None]


ERRORS = [0.01, 0.02, 0.001, 0.1, 0.0001]  # 40, 33.98, 60, 20, 80 dB: their mean is not their median


def test_the_schema_is_what_comfyui_and_the_workflows_rely_on(node: Any):
    schema = node.GET_SCHEMA()
    schema.validate()
    assert (schema.node_id, schema.display_name, schema.category) == ("ERTACompare", "ERTA Compare", "ERTACache")
    assert schema.is_output_node
    required = node.INPUT_TYPES()["required"]
    assert {name: spec[0] for name, spec in required.items()} == dict.fromkeys(
        ("reference", "candidate"), "LATENT,IMAGE"
    )
    assert node.RETURN_TYPES == ["FLOAT", "FLOAT", "IMAGE"]
    assert node.RETURN_NAMES == ["PSNR", "SSIM", "figure"]
    assert all(put.tooltip for put in (*schema.inputs, *schema.outputs)) and schema.description


def test_a_link_from_either_kind_passes_comfyuis_validation(node: Any):
    """As /prompt does it, with a latent node in front and then an image node, and a model loader as the wrong kind."""
    execution = importlib.import_module("execution")
    comfy_nodes = importlib.import_module("nodes")
    comfy_nodes.NODE_CLASS_MAPPINGS["ERTACompare"] = node
    try:
        for source, fits in (("EmptyLatentImage", True), ("LoadImage", True), ("VAELoader", False)):
            graph = {
                "1": {"class_type": source, "inputs": {"width": 64, "height": 64, "batch_size": 1}},
                "2": {"class_type": "ERTACompare", "inputs": {"reference": ["1", 0], "candidate": ["1", 0]}},
            }
            errors = asyncio.run(execution.validate_inputs("id", graph, "2", {"1": (True, [], "1")}))[1]
            kinds = {error["type"] for error in errors}
            assert (kinds == set()) if fits else (kinds == {"return_type_mismatch"}), (source, errors)
    finally:
        del comfy_nodes.NODE_CLASS_MAPPINGS["ERTACompare"]


def test_psnr_median_and_worst_frame_are_those_of_the_errors_put_in(node: Any):
    clip = images()
    output = node.execute(clip, worsened(clip, ERRORS))
    psnr, ssim, figure = output.result
    assert psnr == pytest.approx(-10 * np.log10(np.mean(np.square(ERRORS))), abs=1e-3)
    assert 0.9 < ssim < 1.0
    (payload,), (text,) = output.ui["erta"], output.ui["text"]
    assert payload["psnr_median"] == pytest.approx(40.0, abs=1e-3)
    assert (payload["psnr_worst_frame"], payload["ssim_worst_frame"]) == (4, 4)
    assert payload["psnr_worst"] == pytest.approx(20.0, abs=1e-3)
    assert payload["frame_psnr"] == pytest.approx([40.0, 33.979, 60.0, 20.0, 80.0], abs=1e-2)
    assert not payload["identical"] and payload["frames"] == 5
    assert "PSNR 26.78 dB (median frame 40.00 dB, worst 20.00 dB: frame 4)" in text
    assert figure.ndim == 4 and figure.shape[0] == 1 and figure.shape[-1] == 3
    assert 0.0 <= figure.min() and figure.max() <= 1.0


def test_the_ui_values_are_lists_json_can_carry_and_no_pictures_that_comfyui_shows_itself(node: Any):
    clip = images()
    output = node.execute(clip, worsened(clip, ERRORS))
    assert set(output.ui) == {"erta", "text"}
    assert all(isinstance(values, list) for values in output.ui.values())
    json.dumps(output.ui, allow_nan=False)


def pictures(clips: dict[str, Any]) -> list[torch.Tensor]:
    """Of the reference and the candidate: (frames in the picture, height, width, 3), 0 to 255."""
    temporary = Path(importlib.import_module("folder_paths").get_temp_directory())
    found = []
    for sheet in clips["sheets"]:
        assert sheet["type"] == "temp"
        with Image.open(temporary / sheet["subfolder"] / sheet["filename"]) as picture:
            pixels = torch.from_numpy(np.array(picture)).float()
        rows = pixels.unflatten(0, (-1, clips["height"])).unflatten(2, (clips["columns"], clips["width"]))
        found.append(rows.movedim(2, 1).flatten(0, 1))
    return found


def test_both_clips_are_pictures_of_their_frames(node: Any):
    clip = images()
    other = worsened(clip, ERRORS)
    clips = node.execute(clip, other).ui["erta"][0]["clips"]
    assert (clips["frames"], clips["columns"], clips["height"], clips["width"]) == ([0, 1, 2, 3, 4], 3, 20, 30)
    for shown, frames in zip(pictures(clips), (clip, other), strict=True):
        assert (shown[:5] - 255 * frames.clamp(0, 1)).abs().max() <= 1.0
        assert shown.shape[0] == 6 and not shown[5].any(), "the rest of the last row is black"


def test_a_long_clip_is_played_with_fewer_frames_and_its_worst(node: Any):
    """Frame n is n / 1000 bright, so a picture says which frame it is of; expanded, 1,000 frames are 8 MB."""
    clip = (torch.arange(1000.0) / 1000)[:, None, None, None].expand(-1, 40, 16, 3)
    other = clip.clone()
    other[777] += 0.1
    found = node.execute(clip, other).ui["erta"][0]
    frames = found["clips"]["frames"]
    assert len(found["frame_psnr"]) == 1000 and 777 in frames
    assert len(frames) <= 50 and frames == sorted(set(frames)) and (frames[0], frames[-1]) == (0, 999)
    for shown, played in zip(pictures(found["clips"]), (clip, other), strict=True):
        assert shown[: len(frames)].mean((1, 2, 3)).tolist() == pytest.approx(
            [255 * float(played[n, 0, 0, 0]) for n in frames], abs=1.0
        )


@pytest.mark.parametrize(
    ("frames", "height", "width", "small"),
    [(2, 90, 2000, (14, 320)), (1, 90, 2000, (46, 1024)), (2, 8, 13, (8, 13)), (2, 1, 4000, (1, 320))],
)
def test_large_frames_are_reduced_and_small_ones_left(node: Any, frames: int, height: int, width: int, small: Any):
    """Black and white columns in turn: made smaller they are greys, of 2 to 13 columns each."""
    clip = (torch.arange(width) % 2.0)[None, None, :, None].expand(frames, height, -1, 3)
    clips = node.execute(clip, clip).ui["erta"][0]["clips"]
    assert (clips["height"], clips["width"]) == small
    shown = pictures(clips)[0][0, 0, :, 0] / 255
    assert (0.3 < shown).all() and (shown < 0.7).all() if small[1] < width else (shown == clip[0, 0, :, 0]).all()


def test_the_error_of_a_latent_is_that_which_a_plan_predicts(node: Any):
    """0.3 of a latent of 3 everywhere, or of no image: there PSNR says it."""
    latent = torch.full((1, 4, 8, 8), 3.0)
    latent[0, 0, 0, 0] = -3.0
    output = node.execute({"samples": latent}, {"samples": latent * 1.1})
    assert output.ui["erta"][0]["error"] == pytest.approx(0.1, abs=1e-6)
    assert "error 10.00% of the latent" in output.ui["text"][0]
    clip = images(1)
    image = node.execute(clip, clip)
    assert image.ui["erta"][0]["error"] is None and "error" not in image.ui["text"][0]


def test_a_latents_clip_is_shown_by_its_first_three_channels_in_the_references_range(node: Any):
    latent = torch.zeros((1, 4, 8, 8))
    latent[:, :, 0, 0], latent[:, :, 0, 1] = -2.0, 6.0
    latent[0, :, 4] = torch.tensor([0.0, 2.0, 4.0, -1.0])[:, None]
    shown = pictures(node.execute({"samples": latent}, {"samples": latent}).ui["erta"][0]["clips"])[1]
    assert shown[0, 4, 4].tolist() == pytest.approx([63.75, 127.5, 191.25], abs=1.0)


def test_comfyuis_executor_takes_the_output(node: Any):
    """Its own way of calling: a locked clone of the class, hidden values, and the joining of the ui lists."""
    execution = importlib.import_module("execution")
    clip = images()
    inputs = {"reference": [clip], "candidate": [clip]}
    # 0.3.75 has a parameter hidden_inputs; later versions hand them over in a dict with more.
    takes = inspect.signature(execution.get_output_data).parameters
    hidden = {"hidden_inputs": {}} if "hidden_inputs" in takes else {"v3_data": {"hidden_inputs": {}}}
    made = asyncio.run(execution.get_output_data("id", "2", node(), inputs, **hidden))
    output, ui = made[0], made[1]
    assert output[0] == [100.0] and output[1] == [pytest.approx(1.0)]
    assert ui["text"][0].startswith("5 frames, identical") and len(ui["erta"]) == 1


def test_identical_is_100_db_and_one_frame_needs_no_plot(node: Any):
    clip = images(frames=1)
    output = node.execute(clip, clip)
    assert output.result[:2] == (100.0, pytest.approx(1.0))
    assert output.ui["erta"][0]["identical"] and output.ui["text"][0].startswith("1 frame, identical")
    several = node.execute(images(2), images(2)).result[2]
    assert output.result[2].shape[1] < several.shape[1]


def test_latents_are_measured_against_the_references_range_frame_by_frame(node: Any):
    """(2, 4, 3, 8, 8) is 2 videos of 3 frames; the error is in the second frame of the second, which is the fifth."""
    latent = torch.rand((2, 4, 3, 8, 8), generator=torch.Generator().manual_seed(1)) * 7.0 - 3.0
    latent.view(-1)[0], latent.view(-1)[1] = -4.0, 4.0
    broken = latent.clone()
    broken[1, :, 1] += 0.08  # a hundredth of the range of 8
    output = node.execute({"samples": latent}, {"samples": broken})
    payload = output.ui["erta"][0]
    assert payload["data_range"] == 8.0 and payload["frames"] == 6
    assert payload["psnr_worst_frame"] == 5 and payload["psnr_worst"] == pytest.approx(40.0, abs=1e-3)
    assert output.result[0] == pytest.approx(40.0 + 10 * np.log10(6), abs=1e-3)
    as_images = {"samples": latent[:, :, 0]}, {"samples": broken[:, :, 1]}
    assert node.execute(*as_images).ui["erta"][0]["frames"] == 2


def test_the_figure_shows_the_worst_frame_the_difference_and_its_factor(node: Any):
    """Flat colours: the panels, 40 high from row 70 on, have to contain these, the difference 0.04 times 20."""
    clip = torch.full((3, 40, 192, 3), 0.5)
    clip[1] = 0.25
    candidate = worsened(clip, [0.0, 0.04, 0.01])
    figure = node.execute(clip, candidate).result[2][0]
    middle = [figure[90, x] for x in (100, 302, 504)]
    for pixel, expected in zip(middle, (0.25, 0.29, 0.04 * 20), strict=True):
        assert pixel.tolist() == pytest.approx([expected] * 3, abs=0.01)


def test_the_plot_marks_the_worst_frame_and_only_that(node: Any):
    clip = images()
    figure = node.execute(clip, worsened(clip, ERRORS)).result[2][0]
    mark = torch.tensor([0xFF, 0x6B, 0x5E]) / 255.0
    rows, columns = torch.nonzero((figure - mark).abs().amax(-1) < 0.01, as_tuple=True)
    assert len(rows) and rows.min() > figure.shape[0] / 2
    # The fourth of five points from one edge to the other, its number below it.
    assert columns.float().mean() / figure.shape[1] == pytest.approx(0.75, abs=0.05)


def test_a_latent_is_shown_by_its_first_three_channels_in_the_references_range(node: Any):
    latent = torch.zeros((1, 4, 40, 192))
    latent[:, :, 0, 0], latent[:, :, 0, 1] = -2.0, 6.0
    latent[0, :, 20] = torch.tensor([0.0, 2.0, 4.0, -1.0])[:, None]
    figure = node.execute({"samples": latent}, {"samples": latent}).result[2][0]
    assert figure[90, 100].tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.01)


def test_small_frames_are_enlarged_to_readable_panels(node: Any):
    clip = torch.ones(1, 8, 13, 3)
    small = node.execute(clip, clip).result[2]
    assert small.shape[2] >= 3 * 192
    # White are reference and candidate only, each 13 x 15 by 8 x 15; the text is not as bright.
    assert int((small > 0.99).all(-1).sum()) == 2 * 195 * 120
    large = node.execute(images(1, 90, 2000), images(1, 90, 2000)).result[2]
    assert large.shape[2] < 3 * 600


def nan_at(clip: torch.Tensor) -> torch.Tensor:
    clip = clip.clone()
    clip[2, 3, 4, 1] = float("nan")
    return clip


def with_sound(*parts: torch.Tensor) -> dict[str, Any]:
    return {"samples": importlib.import_module("comfy.nested_tensor").NestedTensor(parts)}


PICTURE, SOUND = torch.linspace(-1, 1, 4 * 128).reshape(1, 4, 2, 8, 8), torch.linspace(-3, 1, 64).reshape(1, 8, 4, 2)


def test_of_video_with_sound_both_are_measured_apart(node: Any):
    """The sound is off by a tenth of itself, the picture by nothing."""
    output = node.execute(with_sound(PICTURE, SOUND), with_sound(PICTURE, 1.1 * SOUND))
    (found,), (text,) = output.ui["erta"], output.ui["text"]
    assert output.result[0] == found["psnr"] == 100.0 and found["frames"] == 2
    assert found["sound_snr"] == [pytest.approx(20.0, abs=1e-3)]
    assert not found["identical"] and "identical" not in text
    assert text.endswith("sound: SNR 20.00 dB of the latent; for spectra decode both sounds")
    output = node.execute(with_sound(PICTURE, SOUND), with_sound(0.5 * PICTURE, SOUND))
    (found,) = output.ui["erta"]
    assert found["psnr"] < 30.0 and found["sound_snr"] == [100.0] and not found["identical"]
    same = node.execute(with_sound(PICTURE, SOUND), with_sound(PICTURE, SOUND)).ui["erta"][0]
    assert same["identical"] and node.execute(LATENT, LATENT).ui["erta"][0]["sound_snr"] == []


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ((PICTURE, SOUND[..., :1]), r"sounds of \[\[1, 8, 4, 2\]\] and \[\[1, 8, 4, 1\]\].*same length"),
        ((PICTURE,), r"sounds of \[\[1, 8, 4, 2\]\] and \[\]"),
        ((PICTURE, SOUND / 0.0), r"values of the sound are NaN or infinite"),
        ((PICTURE[:, :, :1], SOUND), r"LATENT \[1, 4, 2, 8, 8\].*LATENT \[1, 4, 1, 8, 8\]"),
    ],
)
def test_sounds_that_cannot_be_compared_are_refused(node: Any, other: tuple[torch.Tensor, ...], says: str):
    with pytest.raises(ValueError, match=says):
        node.execute(with_sound(PICTURE, SOUND), with_sound(*other))


LATENT = {"samples": torch.linspace(-1, 1, 4 * 64).reshape(1, 4, 8, 8)}


@pytest.mark.parametrize(
    ("reference", "candidate", "says"),
    [
        (LATENT, images(), r"LATENT \[1, 4, 8, 8\].*IMAGE \[5, 20, 30, 3\].*VAE Decode"),
        (images(5), images(4), r"\[5, 20, 30, 3\].*\[4, 20, 30, 3\].*same size, number of frames"),
        (images(), nan_at(images()), r"1 of 9000 values of candidate are NaN"),
        (nan_at(images()), images(), r"1 of 9000 values of reference are NaN"),
        (images() / 0.0, images(), r"reference are NaN or infinite"),
        ({"samples": torch.zeros(1, 4, 8, 8)}, LATENT, r"every value of the reference latent is 0"),
        ({"samples": torch.zeros(1, 4, 8)}, {"samples": torch.zeros(1, 4, 8)}, r"cannot see frames in LATENT"),
        ({"samples": SimpleNamespace()}, LATENT, r"latent or images, not SimpleNamespace"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(node: Any, reference: Any, candidate: Any, says: str):
    with pytest.raises(ValueError, match=says):
        node.execute(reference, candidate)
