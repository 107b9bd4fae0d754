"""The page of `dsolo web` as a Space: `python app.py`."""

import argparse

from dsolo_jax import web

parser = argparse.ArgumentParser()
web.add_arguments(parser)
options = parser.parse_args(["--preset=appearance_b16,miniature", "--host=0.0.0.0"])
raise SystemExit(web.run(options))
