import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from csip.errors import StoreError
from csip.evaluation.charts import Curve
from csip.evaluation.page import Artifact, CountRow, LossChart, RankedQuery, TableRow
from csip.evaluation.protocol import CAVEAT
from csip.evaluation.report import render

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = "</style></title><script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;"


class Page(HTMLParser):
    """Walks a page: every tag closed in order, text and attributes gathered."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def pictures(page):
    for attrs in page.all("img"):
        kind, data = attrs["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        yield attrs, Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_the_page_is_well_formed(sample_report):
    assert Page(render(sample_report)).open == []


def test_the_page_loads_nothing_and_runs_nothing(sample_report):
    html = render(sample_report)
    page = Page(html)
    assert not re.search(r"https?://|//[a-z]|@import|url\(", html)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"} == set()
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in page.all("img"))


def test_every_number_of_the_score_table_is_there(sample_report):
    page = Page(render(sample_report))
    # Galleries of three items answer rank-5 and rank-20 with all they have.
    for row in (
        ["62.5", "50.0 to 71.2", "60.0", "43.8", "50.0", "100.0", "100.0"],
        ["25.0", "none", "none", "0.0", "50.0", "50.0"],
        ["37.5", "none", "none", "25.0", "75.0", "75.0"],
    ):
        start = next(i for i in range(len(page.texts)) if page.texts[i : i + len(row)] == row)
        assert page.texts[start + len(row)] == "4 of 5"


def test_only_the_best_of_a_column_is_marked_even_where_that_is_not_the_main_row(sample_report):
    worse = dataclasses.replace(sample_report.scores[0], mean_ap=0.1)
    html = render(dataclasses.replace(sample_report, scores=(worse, *sample_report.scores[1:])))
    assert re.findall(r'class="number best">([\d.]+)<', html) == ["60.0", "43.8", "50.0", "100.0", "100.0", "37.5"]


def test_an_interval_says_of_which_confidence_it_is(sample_report):
    page = Page(render(sample_report))
    assert "90 % interval" in page.texts
    assert "interval" not in page.texts
    assert "interval" not in render(dataclasses.replace(sample_report, confidence=None))


def test_a_row_that_is_ranked_otherwise_than_the_main_one_says_so(sample_report):
    page = Page(render(sample_report))
    told = [text for text in page.texts if "what is ranked" in text]
    assert told == ["Of the row “HSV colour histogram” what is ranked is: all frames."]


def test_re_ranked_distances_are_not_called_those_of_embeddings(sample_report):
    assert "distance between the embeddings, 0 (the same) to 2" in render(sample_report)
    reranked = render(dataclasses.replace(sample_report, is_reranked=True))
    assert "distance between the embeddings" not in reranked
    assert "re-ranked distance, 0 to 1" in reranked


def test_the_label_and_its_caveat_stand_in_the_header(sample_report):
    page = Page(render(sample_report))
    at = page.texts.index("self-labelled, same camera")
    assert CAVEAT in page.texts[at + 1]
    assert page.texts[at + 1].startswith("The earliest part")


def test_right_and_wrong_are_told_in_words_and_signs(sample_report):
    page = Page(render(sample_report))
    assert [text for text in page.texts if text[0] in "✓✗"] == ["✓ right", "✗ wrong", "✓ right", "✓ right"]
    alts = [attrs["alt"] for attrs in page.all("img")]
    assert "Rank 2, wrong: person 1, frames 4-9" in alts


def test_every_picture_has_a_text_and_its_own_size(sample_report):
    shown = list(pictures(Page(render(sample_report))))
    assert len(shown) == 7
    for attrs, picture in shown:
        assert attrs["alt"]
        assert picture.size == (int(attrs["width"]), int(attrs["height"])) == (64, 160)


def test_skeletons_are_drawn_where_there_are_keypoints(sample_report):
    crop = sample_report.tracklets[0].crops[0]
    bare = dataclasses.replace(sample_report.tracklets[0], crops=(dataclasses.replace(crop, keypoints=None),))
    with_skeleton = next(pictures(Page(render(sample_report))))[1]
    without = next(pictures(Page(render(dataclasses.replace(sample_report, tracklets=(bare,))))))[1]
    assert np.abs(np.asarray(with_skeleton, dtype=int) - np.asarray(without, dtype=int)).max() > 60


def test_the_lineage_names_versions_digests_code_and_time(sample_report):
    html = render(sample_report)
    page = Page(html)
    full = [attrs["title"] for attrs in page.all("code") if "title" in attrs]
    assert {"a1" * 32, "c0" * 32, "f3" * 20 + "+"} <= set(full)
    assert {"@4", "62.5 %", "1 min 23 s on cpu", "csip lineage 7777", "street.avi"} <= set(page.texts)
    assert "with changes" in html


def test_what_was_left_out_is_counted(sample_report):
    page = Page(render(sample_report))
    at = page.texts.index("tracklets too short for two parts")
    assert page.texts[at : at + 3] == ["tracklets too short for two parts", "(left out)", "3"]


def test_no_name_becomes_markup(sample_report):
    query = sample_report.queries[0]
    evil = dataclasses.replace(
        sample_report,
        **dict.fromkeys(("dataset", "snapshot", "recipe", "created", "label", "protocol", "lineage_command"), EVIL),
        scores=(dataclasses.replace(sample_report.scores[0], name=EVIL),),
        losses=(LossChart(EVIL, EVIL, EVIL, (Curve(EVIL, (1, 2), (1, 2)),)),),
        counts=(CountRow(EVIL, 1, EVIL),),
        tracklets=(dataclasses.replace(sample_report.tracklets[0], tracklet_id=EVIL, camera=EVIL, role=EVIL),),
        queries=(RankedQuery(query.crop, EVIL, (dataclasses.replace(query.items[0], name=EVIL),)),),
        lineage=(
            dataclasses.replace(
                sample_report.lineage[0],
                **dict.fromkeys(("stage", "run_id", "config_digest", "git_commit", "device"), EVIL),
                inputs=(Artifact(EVIL, EVIL, EVIL),),
            ),
        ),
        tables=(TableRow(EVIL, 1, 1),),
    )
    html = render(evil)
    page = Page(html)
    assert page.open == []
    assert "<script" not in html
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert all(attrs["src"].startswith("data:") for attrs in page.all("img"))
    assert page.texts.count(EVIL) >= 10


def test_an_empty_report_says_what_is_missing(sample_report):
    empty = dict.fromkeys(("scores", "losses", "counts", "tracklets", "queries", "lineage", "tables"), ())
    page = Page(render(dataclasses.replace(sample_report, **empty)))
    assert page.open == []
    assert {"No scores in this run.", "No training in this run.", "No tracklets to show.", "no data"} <= set(page.texts)


def test_the_same_report_gives_the_same_page(sample_report):
    assert render(sample_report) == render(sample_report)


def test_a_crop_that_is_no_picture_is_an_error(sample_report):
    crop = dataclasses.replace(sample_report.queries[0].crop, jpeg=b"nothing")
    broken = dataclasses.replace(sample_report, queries=(RankedQuery(crop, "q", ()),))
    with pytest.raises(StoreError, match="7 bytes is not a picture"):
        render(broken)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(sample_report, chromium, tmp_path, scheme):
    page, shot = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(render(sample_report), encoding="utf-8")
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    chromium(page, f"--screenshot={shot}", "--window-size=1280,4000", *dark)
    pixels = np.asarray(Image.open(shot).convert("L"), dtype=int)
    assert pixels.shape == (4000, 1280)
    paper = np.median(pixels)
    assert paper > 240 if scheme == "light" else paper < 40
    assert (np.abs(pixels - paper) > 60).mean() > 0.005


@pytest.mark.slow
def test_a_browser_finds_every_part_in_the_page(sample_report, chromium, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(render(sample_report), encoding="utf-8")
    dom = chromium(page, "--dump-dom")
    for text in (
        "street",
        "self-labelled, same camera",
        "62.5 %",
        "HSV colour histogram",
        "✗ wrong",
        "1 min 23 s on cpu",
    ):
        assert text in dom
    assert dom.count("<svg") == 3
