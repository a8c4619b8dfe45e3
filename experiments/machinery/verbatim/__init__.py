"""The documents' own programs, run as they stand, in the TensorFlow of their time and in today's.

None of the documents' lines is here: `programs.toml` names them by number, with a checksum, and has the rules that restore
what the text lost (indentation) or lacks.

``texts``    reads the rules, and takes programs out of the documents
``child``    runs one program, in the interpreter that it is started by (Python 3.6 and up)
``around``   what is put around a program that is a part of one: a network, a data set, a measurement (Python 3.6 and up)
``shim``     makes today's TensorFlow look like that of the documents' time, and lists what it did
``runner``   runs programs in the environments there are, and keeps what they gave; ``python -m`` of this package calls it
``table``    the figures that the programs gave, beside the documents' and the project's; what does not run
``timeline`` since or until which TensorFlow a claim holds
``summary``  the tables and pictures that are written of it all
"""
