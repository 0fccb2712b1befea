"""What a browser, and whoever is in between, is told of a picture's answer."""

from pathlib import Path

from daemon.live import Live
from tests.console.test_routes import Pictures, console
from tests.integration.rest_rig import rest


async def test_a_picture_is_kept_by_who_asked_and_runs_nothing(tmp_path: Path) -> None:
    async with rest(tmp_path / "q.db", console=console(Live(), Pictures())) as rig:
        headers = (await rig.ask("GET", "/console/picture/1")).headers

    # Nobody in between may give it to one without a token.
    assert headers["Cache-Control"] == "private, max-age=300"
    assert headers["Vary"] == "Authorization"
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert (headers["X-Picture-Width"], headers["X-Picture-Height"]) == ("640", "480")
