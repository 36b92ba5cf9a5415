"""Command ``phantom``: write synthetic mammograms in the layout of a real dataset."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sgc_experiments.command_line import parse
from sgc_experiments.config import PhantomConfig
from sgc_experiments.data.phantom.cbis_ddsm_layout import write_cbis_ddsm
from sgc_experiments.data.phantom.inbreast_layout import write_inbreast
from sgc_experiments.data.phantom.vindr_mammo_layout import write_vindr_mammo

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and write the files."""
    config = parse(PhantomConfig, arguments)
    options = config.model_dump(include={"patients", "seed", "difficulty", "syntax", "workers"})
    out = config.out.expanduser().absolute()
    if config.layout == "cbis_ddsm":
        write_cbis_ddsm(out, style=config.style, **options)
    elif config.layout == "vindr_mammo":
        write_vindr_mammo(out, **options)
    else:
        write_inbreast(out, **options)
    logger.info(
        "wrote %d patients; read them with -P dataset=%s -P data_dir=%s",
        config.patients, config.layout, out,
    )  # fmt: skip
