"""The page: whole, offline, honest about what is missing, and readable without its pictures."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image as Picture
from support.small_experiment import make_dataset, make_experiment

from morphbits import bids, cli, images, report
from morphbits.bids import Subject
from morphbits.errors import UserError
from morphbits.report import experiment as reading
from morphbits.report import figures, registrations, tables
from morphbits.report import page as module
from morphbits.stats.analysis import analyse
from morphbits.stats.intervals import over_subjects

A, B = ("sha256:" + letter * 64 for letter in "ab")
VOID = {"meta", "link", "img", "br", "hr", "input", "col"}


class Page(HTMLParser):
    """Collects what a browser would load, and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.headings: list[int] = []
        self.stops: list[dict[str, str | None]] = []  # where the Tab key stops, but for links

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(given)
        if tag != "a":
            self.loads += [
                v or "" for k, v in attributes if k in ("src", "href", "srcset", "data")
            ]
        elif given.get("href"):
            self.links.append(given["href"] or "")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "tabindex" in given:
            self.stops.append(given)
        if given.get("id"):
            self.ids.append(given["id"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight subjects with five samples each, analysed, and its page."""
    root = tmp_path_factory.mktemp("report")
    dataset = make_dataset(root / "data", 8)
    make_experiment(root / "results", "whole", dataset, 5, settings={"subjects": 8})
    analyse(root / "results", "whole", dataset)
    report.build(report.read(root / "results", "whole"))
    return root / "results"


@pytest.fixture(scope="module")
def page(results: Path) -> Page:
    return parse(bids.experiment_file(results, "whole", "report.html"))


def test_nothing_is_loaded_from_elsewhere(results: Path, page: Page) -> None:
    assert page.loads and all(value.startswith("data:") for value in page.loads)
    source = bids.experiment_file(results, "whole", "report.html").read_text(encoding="utf-8")
    assert "<script" not in source and "@import" not in source and "url(" not in source
    for image in page.images:
        kind, _, encoded = (image["src"] or "").partition(";base64,")
        content = base64.b64decode(encoded)
        if kind == "data:image/svg+xml":
            svg = ElementTree.fromstring(content)
            references = [v for e in svg.iter() for k, v in e.attrib.items() if "href" in k]
            assert all(reference.startswith(("#", "data:")) for reference in references)
        else:
            assert kind == "data:image/png"
            Picture.open(io.BytesIO(content)).verify()


def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert link.startswith(("https://", "data:text/"))
    assert len(page.ids) == len(set(page.ids))


def test_tables_are_inside_the_page(
    results: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bids.experiment_folder(results, "whole")
    inside = [
        unquote_to_bytes(link.partition(",")[2]) for link in page.links if "text/csv" in link
    ]
    assert set(inside) == {path.read_bytes() for path in folder.glob("*.csv")} and inside[0]
    monkeypatch.setattr(module, "EMBEDDED", len(min(inside, key=len)))
    links = module.downloads(folder)
    assert links["significance.csv"] == "significance.csv"  # larger: a link to the file
    assert sum(link.startswith("data:") for link in links.values()) == 1


def test_every_picture_has_words(page: Page) -> None:
    assert len(page.images) >= 3 + 8  # box plots, study, tissue; a map for each subject
    for image in page.images:
        assert len(image["alt"] or "") > 20


def test_headings_and_stops_of_the_keyboard_are_in_order(page: Page) -> None:
    steps = np.diff(page.headings)
    assert page.headings[0] == 1 and page.headings.count(1) == 1 and steps.max() == 1
    assert {stop["tabindex"] for stop in page.stops} == {"0"}  # the order of the page
    labels = [stop["aria-label"] or "" for stop in page.stops]
    assert all(stop["role"] == "region" for stop in page.stops)
    assert len(set(labels)) == len(labels) >= 10 and all(len(label) > 5 for label in labels)


def test_numbers_are_those_of_the_table(results: Path, page: Page) -> None:
    text = " ".join(" ".join(page.text).split())
    experiment = reading.read(results, "whole")
    for quantity in ("image", "warp"):
        means = [row["mean"] for row in experiment.bits(quantity).values()]
        of_five = [r for r in experiment.bits_over_n if (r["quantity"], r["n"]) == (quantity, 5)]
        assert len(means) == len(of_five) == 8
        error = np.linalg.norm([row["standard_error"] for row in of_five]) / 8
        assert re.search(rf"\b{np.mean(means):.2f} of 24 bits", text)
        assert (
            f". ± {np.std(means, ddof=1):.2f} over subjects (standard deviation), ± {error:.3f}"
            " from the number of samples (standard error of the mean)."
        ) in text
        half = 2.7764 * error  # t of 4 degrees of freedom, 97.5 %
        low, high = over_subjects(means)  # type: ignore[misc]
        assert (
            f"95 % interval of the mean: {np.mean(means) - half:.2f} to"
            f" {np.mean(means) + half:.2f} by the number of samples,"
            f" {low:.2f} to {high:.2f} over subjects."
        ) in text
        (row,) = (row for row in tables.over_n(experiment).rows if row[0] == "5")
        assert row[2 if quantity == "image" else 4] == f"{low:.2f} to {high:.2f}"
    assert "p ≈ 0.55 at 95 % confidence" in text  # five samples: 0.05^(1/5)
    assert "not expected to equal theirs" in text
    assert "19.53 ± 0.28" in text and "18.56 ± 0.08" in text  # as published
    assert "not complete" not in text
    assert text.count("n = 5, probability 0.55 at 95 % confidence.") == 2  # by both headlines
    assert "Here n is 5: fewer samples show more bits, so these columns cannot be compared" in text
    assert "this experiment (fewer samples: not comparable)" in text
    assert "make inference SUBJECTS=8 RUNS=5 ENGINE=native MODE=random" in text


def test_measures_are_those_of_the_table(results: Path) -> None:
    content = reading.read(results, "whole")
    shown = {tuple(cells[:2]): cells for cells in tables.measures(content).rows}
    assert len(shown) == len(content.ratios) > 0
    row = next(r for r in content.ratios if (r["measure"], r["tissue"]) == ("jacobian", "GM"))
    cells = shown["Jacobian determinant", "GM"]
    mean, numbers = tables.number(row["mean"], 4), (row["sigma_num"], row["sigma_anat"])
    assert cells[2:7] == ["8", "5", mean, *map(tables.small, numbers)]
    ends = [tables.small(row[name]) for name in ("npvr", "npvr_low", "npvr_high")]
    assert cells[7] == "{} ({} to {})".format(*ends)
    others = (row["navr"], row["d_deviation"], row["drowned"])
    assert cells[8:] == [tables.small(value) for value in others]
    away = shown["framewise displacement (Power), mm", "brain"]
    assert away[5] != tables.MISSING and away[6:] == [tables.MISSING] * 5


def test_results_come_before_what_was_run_and_the_model(page: Page) -> None:
    places = [page.ids.index(name) for name in ("short", "subjects", "samples", "cost", "run")]
    assert places == sorted(places)


def test_no_option_without_a_value_and_no_raw_key_is_shown(results: Path) -> None:
    rows = tables.what_was_run(reading.read(results, "whole")).rows
    assert [row for row in rows if row[1] in ("", "None")] == []
    card = tables.model_card(
        {"caution": "x", "a_b": 1, "accuracy": {"2mm": {"dice_gm": {"c_d": 2}}}}
    )
    assert card.rows == [["a b", "1"], ["accuracy, 2mm, dice gm, c d", "2"]]


@pytest.mark.parametrize(
    ("file", "identity", "row"),
    [
        ("m/demo.h5", {"model": A}, "demo.h5 (sha256:aaaaaaaaaaaa…)"),
        (
            "m/joint",
            {"model": "joint", "affine_weights": A, "deform_weights": B},
            "joint of FreeSurfer 8's mri_synthmorph (affine weights sha256:aaaaaaaaaaaa…, "
            "deform weights sha256:bbbbbbbbbbbb…)",
        ),
        (
            "net:make",
            {"model": "net:make", "model_code": A, "model_weights": B},
            "net:make (code sha256:aaaaaaaaaaaa…, weights sha256:bbbbbbbbbbbb…)",
        ),
        ("classical", {"model": "classical"}, "classical"),
    ],
)
def test_the_row_of_the_model_has_the_checksums_of_what_it_is_made_of(
    results: Path, file: str, identity: dict[str, str], row: str
) -> None:
    experiment = reading.read(results, "whole")
    records = [
        dataclasses.replace(
            r,
            configuration={k: v for k, v in r.configuration.items() if k != "model"} | identity,
            provenance=r.provenance | {"files": {"model": file}},
        )
        for r in experiment.records
    ]
    rows = tables.what_was_run(dataclasses.replace(experiment, records=records)).rows
    assert dict(map(tuple, rows))["model"] == row


def test_with_more_samples_than_the_study_its_number_is_compared(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 2)
    make_experiment(tmp_path, "many", dataset, 12, skip=(("12", "002"),))
    analyse(tmp_path, "many", dataset)
    experiment = reading.read(tmp_path, "many")
    assert experiment.counts == [11, 12]
    first_ten = experiment.of_first(10, "image")
    rows = [row for row in experiment.bits_over_n if (row["n"], row["quantity"]) == (10, "image")]
    assert first_ten == [row["mean"] for row in rows]
    whole = experiment.mean_bits("image")
    assert whole is not None and whole < np.mean(first_ten)
    here = tables.beside_the_study(experiment).rows[-1]
    assert here[:4] == ["this experiment", "2", "10", tables.spread(first_ten)]
    assert reading.support([11, 12]) == "n = 11 or 12, probability 0.76 to 0.78 at 95 % confidence"
    (eleven,) = (row for row in tables.over_n(experiment).rows if row[0] == "11")
    assert eleven[5] == "1"  # the other subject has no point there


@pytest.mark.parametrize(
    ("engine", "precision", "says", "not_says"),
    [
        ("ieee", {}, "Nothing was perturbed.", "rounding noise"),
        ("native", {"precision": "8"}, "here every result was rounded to 8", "of 24 bits"),
        ("native", {"precision": "8", "perturb": "only:network"}, "of 24 bits", "was rounded to"),
    ],
)
def test_what_was_not_perturbed_or_had_fewer_bits_says_so(
    tmp_path: Path, engine: str, precision: dict[str, str], says: str, not_says: str
) -> None:
    dataset = make_dataset(tmp_path / "data", 1)
    bits = np.inf if engine == "ieee" else 5.0
    make_experiment(tmp_path, "x", dataset, 3, image_bits=bits, warp_bits=bits)
    for path in tmp_path.glob("x/sample-*/sub-*/sample.json"):
        record = json.loads(path.read_text())
        record["configuration"] |= {"engine": engine, **precision}
        path.write_text(json.dumps(record))
    analyse(tmp_path, "x", dataset)
    text = " ".join(" ".join(parse(report.build(report.read(tmp_path, "x"))[0]).text).split())
    assert says in text and not_says not in text
    assert ("so there is nothing to compare" in text) == (engine == "ieee")
    assert ("hold 8 bits, so these columns cannot be compared" in text) == ("of 8 bits" in text)
    assert ("3 unperturbed samples each" in text) == (engine == "ieee")
    words = report.summarize(report.read(tmp_path, "x"))
    assert ("nothing was perturbed" in words) == (engine == "ieee")


def test_images_that_were_not_used_are_named(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 1)
    make_experiment(tmp_path, "some", dataset, 2)
    path = bids.experiment_file(tmp_path, "some", "experiment.json")
    record = json.loads(path.read_text())
    record["dataset"]["left_out"] = {"sub-9/anat/sub-9_T2w.nii.gz": "no T1w image"}
    path.write_text(json.dumps(record))
    analyse(tmp_path, "some", dataset)
    text = " ".join(" ".join(parse(report.build(report.read(tmp_path, "some"))[0]).text).split())
    assert "Not used of the dataset: 1" in text and "sub-9/anat/sub-9_T2w.nii.gz" in text


def test_time_is_a_median_everywhere(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 1)
    make_experiment(tmp_path, "slow", dataset, 3)
    path = bids.sample_json(bids.sample_folder(tmp_path, "slow", "02", Subject("001")))
    record = json.loads(path.read_text())
    record["provenance"]["seconds"] = 4000.0  # the machine slept; the others took 4 s
    path.write_text(json.dumps(record))
    analyse(tmp_path, "slow", dataset)
    text = " ".join(" ".join(parse(report.build(report.read(tmp_path, "slow"))[0]).text).split())
    assert "One perturbed registration took 4.00 s (1 thread)" in text


def test_the_page_is_small(results: Path) -> None:
    size = bids.experiment_file(results, "whole", "report.html").stat().st_size
    assert size < 1_000_000


def test_the_same_results_give_the_same_pictures(results: Path) -> None:
    experiment = reading.read(results, "whole")
    for draw in (figures.box_plots, figures.by_tissue, figures.beside_the_study):
        assert draw(experiment) == draw(experiment)


def test_the_figures_of_the_page_lie_beside_it(results: Path, page: Page) -> None:
    folder = bids.experiment_file(results, "whole", "figures")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"box-plots.svg", "by-tissue.svg", "map-colours.svg", "maps_sub-008.png"} < set(files)
    embedded = [base64.b64decode((image["src"] or "").partition(",")[2]) for image in page.images]
    assert set(embedded) == set(files.values())


def test_a_map_shows_the_bits_in_its_colours(results: Path) -> None:
    experiment = reading.read(results, "whole")
    scale = figures.map_scale(experiment)
    figure = figures.maps(experiment, "sub-001", scale)
    assert figure is not None
    picture = Picture.open(io.BytesIO(figure.content))
    assert picture.mode == "P"
    indices = np.asarray(picture)
    used = set(np.unique(indices))
    assert {0, 1} < used  # background and the brain's outline
    assert max(used) <= 2 + figures.MAP_STEPS * (scale[1] - scale[0])


def test_the_registration_is_shown_in_colours_that_say_what_differs(results: Path) -> None:
    experiment = reading.read(results, "whole")
    seen = registrations.read(experiment)
    assert list(seen) == experiment.subjects
    one = seen["sub-001"]
    # the moving phantom is the fixed one: before, both are equally bright everywhere
    moving, fixed = np.divmod(one.before_HW, registrations.LEVELS)
    assert (moving == fixed).all() and set(np.unique(fixed)) >= {
        0,
        4,
        8,
        12,
    }  # three tissues
    after = one.after_HW // registrations.LEVELS
    assert (after <= moving).all() and (after < moving).any()  # the moved one was made darker
    palette = registrations.palette()
    assert (palette[:: registrations.LEVELS + 1][: registrations.LEVELS].std(axis=1) < 1).all()
    red, green, blue = palette[(registrations.LEVELS - 1) * registrations.LEVELS].tolist()
    assert red == 255 and 100 < green < 150 and blue == 0  # orange: the moving image alone


def test_displacements_are_in_mm_and_their_scale_is_shared(results: Path, page: Page) -> None:
    experiment = reading.read(results, "whole")
    seen = registrations.read(experiment)
    record = next(r for r in experiment.of_sample("ieee") if r.subject.entities == "sub-001")
    unit = bids.sample_folder(results, "whole", "ieee", record.subject)
    warp = images.load_warp(bids.warp_path(unit, record.subject, experiment.space))
    fixed = images.load(record.provenance["files"]["fixed"])
    lengths = 2 * np.sqrt((warp.data.astype(float) ** 2).sum(-1))[fixed.data > 0]  # 2 mm voxels
    assert seen["sub-001"].mean == pytest.approx(lengths.mean(), rel=1e-5)  # float32 in between
    assert seen["sub-001"].largest == pytest.approx(lengths.max(), rel=1e-5)
    limit = registrations.limit(seen.values())
    assert limit - 1 < max(one.largest for one in seen.values()) <= limit
    assert f"yellow {limit} mm" in registrations.colours(limit).alt
    (alt,) = (i["alt"] or "" for i in page.images if (i["alt"] or "").startswith("sub-001 "))
    assert f"mean {lengths.mean():.1f} mm, largest {lengths.max():.1f} mm" in alt


def test_every_subject_has_a_link(results: Path, page: Page) -> None:
    for subject in reading.read(results, "whole").subjects:
        assert subject in page.ids
        assert page.links.count(f"#{subject}") == 2  # in the table, and at its images


def test_without_the_inputs_the_page_has_no_overlays(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 1)
    make_experiment(tmp_path, "moved", dataset, 2)
    analyse(tmp_path, "moved", dataset)
    dataset.moving(Subject("001")).unlink()
    page = parse(report.build(report.read(tmp_path, "moved"))[0])
    assert "#sub-001" in page.links and "sub-001" in page.ids  # the maps are there
    assert "Is the registration any good?" not in "".join(page.text)


def test_an_unfinished_experiment_says_so(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 3)
    skip = (
        ("03", "002"),
        *((f"{k:02d}", "003") for k in range(2, 4)),
        ("plain", "001"),
    )
    make_experiment(tmp_path, "part", dataset, 3, skip=skip, settings={"subjects": 4})
    analyse(tmp_path, "part", dataset)
    text = " ".join(" ".join(parse(report.build(report.read(tmp_path, "part"))[0]).text).split())
    assert "sub-002 has 2 of 3 samples." in text
    assert "sub-003 has fewer than two samples and is left out." in text
    assert "2 of 4 subjects have samples." in text
    assert "Two samples are the minimum" in text


def test_identical_samples_have_a_page_too(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 1)
    make_experiment(tmp_path, "same", dataset, 2, image_bits=np.inf, warp_bits=np.inf)
    analyse(tmp_path, "same", dataset)
    text = " ".join(" ".join(parse(report.build(report.read(tmp_path, "same"))[0]).text).split())
    assert text.count("24.00 of 24 bits") == 2
    assert figures.map_scale(reading.read(tmp_path, "same")) == (23, 24)


def test_subjects_of_the_study_stand_beside_it(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 1)
    make_experiment(tmp_path, "corr", dataset, 2)
    analyse(tmp_path, "corr", dataset)
    experiment = reading.read(tmp_path, "corr")
    assert tables.matched_with_the_study(experiment).rows == []
    renamed = [row | {"subject": "sub-0003002_ses-1"} for row in experiment.significance]
    experiment.significance[:] = renamed
    (row,) = tables.matched_with_the_study(experiment).rows
    assert row[0] == "sub-0003002_ses-1"
    assert row[1] == "2"
    assert row[3:5] == ["18.40", "19.40"]  # by the formula, as published


def test_samples_of_another_configuration_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 1)
    make_experiment(tmp_path, "mixed", dataset, 2)
    analyse(tmp_path, "mixed", dataset)
    path = bids.sample_json(bids.sample_folder(tmp_path, "mixed", "02", Subject("001")))
    record = json.loads(path.read_text())
    record["configuration"]["accumulation"] = "direct"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="another accumulation"):
        report.build(report.read(tmp_path, "mixed"))


def test_missing_steps_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no experiment"):
        report.build(report.read(tmp_path, "nothing"))
    dataset = make_dataset(tmp_path / "data", 1)
    make_experiment(tmp_path, "bare", dataset, 2)
    with pytest.raises(UserError, match="significance --experiment bare"):
        report.build(report.read(tmp_path, "bare"))


def test_the_verbs_and_their_summary(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 1)
    make_experiment(tmp_path / "results", "cli", dataset, 2)

    def run(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*cli.command(verb), "--experiment", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = run("significance", "cli", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "results/cli/significance.csv"
    done = run("report", "cli")
    assert done.returncode == 0, done.stderr
    assert "results/cli/report.html" in done.stdout
    mean = reading.read(tmp_path / "results", "cli").mean_bits("image")
    assert re.search(rf"^mean +{mean:.2f}\b", done.stdout, re.MULTILINE)
    done = run("report", "none")
    assert done.returncode == 2
    assert (
        done.stderr.startswith("error: there is no experiment") and "Traceback" not in done.stderr
    )
