"""How the toy model `talker` is made: data, codec, language part, evaluation. The engine does not import it."""
